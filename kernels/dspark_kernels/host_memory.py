"""Returns freed memory to the system, which the C library would keep."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def give_back_freed() -> None:
    """Between the layers of a model that is read: glibc holds on to blocks below 32 MB, and what
    it holds is scattered over the weights that stay. Elsewhere nothing is done."""
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in musl
