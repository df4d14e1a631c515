"""A moving average of a head's weights, which is what is judged and written."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class AveragedWeights:
    """`decay` is how much of the average a step keeps; early steps keep less, since the average
    would otherwise remember the first weights."""

    def __init__(self, head: nn.Module, decay: float) -> None:
        self._head, self._decay = head, decay
        self.num_steps = 0
        self.tensors: dict[str, torch.Tensor] = {}  # none before the first step

    @torch.no_grad()
    def take(self) -> None:
        """The weights after a step."""
        self.num_steps += 1
        if not self.tensors:
            self.tensors = {n: p.detach().clone() for n, p in self._head.named_parameters()}
        keep = min(self._decay, (1 + self.num_steps) / (10 + self.num_steps))
        for name, parameter in self._head.named_parameters():
            self.tensors[name].lerp_(parameter, 1.0 - keep)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the head has the average."""
        own = {
            name: parameter.detach().clone() for name, parameter in self._head.named_parameters()
        }
        self._fill(self.tensors or own)
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._head.named_parameters():
            parameter.copy_(tensors[name])
