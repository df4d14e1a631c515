"""How many tokens of each drafted block the target verifies.

Lossless because the admission of x_k depends on the tokens before x_k only: c_k does, and the
search stops at the first drop instead of maximising globally (DSpark, DeepSeek 2026, arXiv
2607.05147).
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from dspark.engine.schedule.sps_profile import SpsTable


class Scheduler(Protocol):
    """Decides how much of each block is verified, whether or not the host has read it.

    `threshold`: the device itself cuts a block before its first confidence below it; None: it
    does not.
    """

    threshold: float | None

    def admit(self, confidences: torch.Tensor | None, limits: Sequence[int]) -> list[int]:
        """For blocks the host has read: confidences [R, K] (None without a confidence head), limits
        R <= K -> R lengths."""
        ...

    def even_length(self, survival: Sequence[Sequence[float]], choices: Sequence[int]) -> int:
        """For blocks not read yet: one of the given lengths, the same for all requests, by the
        survival [R, K] of an earlier round."""
        ...


class FullSchedule:
    """Verify everything that was drafted."""

    threshold: float | None = None

    def admit(self, confidences: torch.Tensor | None, limits: Sequence[int]) -> list[int]:
        """As Scheduler.admit."""
        return list(limits)

    def even_length(self, survival: Sequence[Sequence[float]], choices: Sequence[int]) -> int:
        return max(choices)


class ThresholdSchedule:
    """Verify up to the first position whose confidence is below a fixed threshold."""

    def __init__(self, threshold: float) -> None:
        self.threshold: float | None = threshold

    def admit(self, confidences: torch.Tensor | None, limits: Sequence[int]) -> list[int]:
        """As Scheduler.admit."""
        if confidences is None or self.threshold is None:
            return list(limits)
        confident = (confidences >= self.threshold).int().cumprod(dim=1).sum(dim=1)
        return [min(n, limit) for n, limit in zip(confident.tolist(), limits, strict=True)]

    def even_length(self, survival: Sequence[Sequence[float]], choices: Sequence[int]) -> int:
        return max(choices)  # the device cuts the block


class SpsSchedule:
    """Admit by survival while the expected throughput Θ = (R + Σ survival) · SPS rises."""

    threshold: float | None = None

    def __init__(self, table: SpsTable) -> None:
        self.table = table

    def admit(self, confidences: torch.Tensor | None, limits: Sequence[int]) -> list[int]:
        """As Scheduler.admit."""
        if confidences is None:
            return list(limits)
        num_requests = len(limits)
        lengths = [0] * num_requests
        expected = float(num_requests)
        best = expected * self.table.steps_per_second(num_requests, num_requests)
        for survival, request in _by_survival(confidences, limits):
            rows = num_requests + sum(lengths) + 1
            throughput = (expected + survival) * self.table.steps_per_second(rows, num_requests)
            if throughput < best:
                break
            expected, best = expected + survival, throughput
            lengths[request] += 1
        return lengths

    def even_length(self, survival: Sequence[Sequence[float]], choices: Sequence[int]) -> int:
        num_requests = len(survival)

        def throughput(length: int) -> float:
            expected = num_requests + sum(sum(row[:length]) for row in survival)
            rows = num_requests * (length + 1)
            return expected * self.table.steps_per_second(rows, num_requests)

        return max(choices, key=throughput)


def _by_survival(confidences: torch.Tensor, limits: Sequence[int]) -> list[tuple[float, int]]:
    """(survival, request) of all candidates, likeliest first.

    Survival falls along a block and the sort is stable, so a prefix stays a prefix.
    """
    survival = confidences.cumprod(dim=1).tolist()
    candidates = [
        (row[k], request)
        for request, (row, limit) in enumerate(zip(survival, limits, strict=True))
        for k in range(limit)
    ]
    return sorted(candidates, key=lambda candidate: -candidate[0])
