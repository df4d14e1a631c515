"""Which routed experts a pass read: what a scheduler that prices bytes goes by."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """`per_token` of `per_layer` experts are read in each of `layers`, of `num_bytes` each."""

    layers: int
    per_layer: int
    per_token: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ExpertUse:
    """Of one pass over blocks of requests, all layers together. `new` [R][rows]: experts that a row
    brings beyond those of the rows before it in its block; `reads`: distinct ones of the pass, of
    which `far` came from files that memory does not hold for sure."""

    new: tuple[tuple[int, ...], ...]
    reads: int
    far: int = 0


@runtime_checkable
class RoutesExperts(Protocol):
    """A target with routed experts that knows which ones its last pass over blocks read."""

    expert_shape: ExpertShape

    def expert_use(self) -> ExpertUse | None:
        """Of the last `verify`; None before the first."""
        ...


def expert_use(
    routes: torch.Tensor, sizes: Sequence[int], far: torch.Tensor | None = None
) -> ExpertUse:
    """routes int64 [L, N, k] of blocks of `sizes` rows; far bool [L, E], experts that no slot
    holds (None: no slots, all count as near)."""
    blocks = routes.split(list(sizes), dim=1)
    num_experts = int(routes.max()) + 1 if far is None else far.shape[1]
    seen = _seen(routes, num_experts)
    missed = 0 if far is None else int((seen & far).sum())
    new = tuple(_new_by_row(block, num_experts) for block in blocks)
    return ExpertUse(new, int(seen.sum()), missed)


def _new_by_row(block: torch.Tensor, num_experts: int) -> tuple[int, ...]:
    """block [L, n, k]."""
    counts = [0] + [
        int(_seen(block[:, : end + 1], num_experts).sum()) for end in range(len(block[0]))
    ]
    return tuple(after - before for before, after in pairwise(counts))


def _seen(routes: torch.Tensor, num_experts: int) -> torch.Tensor:
    """[L, N, k] -> bool [L, E]."""
    seen = torch.zeros(len(routes), num_experts, dtype=torch.bool)
    return seen.scatter_(1, routes.flatten(1), True)
