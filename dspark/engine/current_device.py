"""The device on which kernels are launched: PyTorch keeps one for each thread."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

Item = TypeVar("Item")


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Triton and graphs launch on the current device, wherever their tensors are; a chat loads in
    one thread and answers in another."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def each_on_device(device: torch.device, work: Iterator[Item]) -> Iterator[Item]:
    """The same items; between them the caller has its own device."""
    while True:
        with on_device(device):
            try:
                item = next(work)
            except StopIteration:
                return
        yield item
