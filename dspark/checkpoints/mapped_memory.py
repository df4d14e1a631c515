"""Advice to the system about memory: what of a mapped file will be read next, what need not stay,
and what must. Where it cannot be given, nothing happens: it changes no byte."""

import ctypes
import mmap
import sys
from functools import cache
from typing import Any

import torch

WILL_NEED = 3  # of madvise
COLD = 20  # Linux 5.4 and later


def read_ahead(*tensors: torch.Tensor) -> bool:
    """Begin to read them, all at once and far ahead of the first touch."""
    return all([_advise(each, WILL_NEED) for each in tensors])


def let_go(*tensors: torch.Tensor) -> bool:
    """The first to leave memory, if others need it."""
    return all([_advise(each, COLD) for each in tensors])


def lock(tensor: torch.Tensor) -> bool:
    """Keep it in memory until `unlock`, whatever else needs room; False where that is refused."""
    library = _library()
    return library is not None and library.mlock(*_place(tensor)) == 0


def unlock(tensor: torch.Tensor) -> None:
    if (library := _library()) is not None:
        library.munlock(*_place(tensor))


def _advise(tensor: torch.Tensor, advice: int) -> bool:
    library = _library()
    if library is None:
        return False
    return bool(library.madvise(*_place(tensor), advice) == 0)


def _place(tensor: torch.Tensor) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
    """In whole pages."""
    start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    end = tensor.data_ptr() + tensor.numel() * tensor.element_size()
    return ctypes.c_void_p(start), ctypes.c_size_t(end - start)


@cache
def _library() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None)
    except OSError:
        return None
