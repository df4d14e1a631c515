"""How many tokens of each drafted block the target verifies.

Lossless because the admission of x_k depends on the tokens before x_k only: c_k does, and the
search stops at the first drop instead of maximising globally (DSpark, DeepSeek 2026, arXiv
2607.05147).
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from dspark.engine.schedule.acceptance import Acceptance
from dspark.engine.schedule.expert_prices import ExpertPrices
from dspark.engine.schedule.sps_profile import CONTEXT_TOKENS, SpsCurve, SpsTable

DEPTH_STEP = 256  # tokens of context that are scheduled alike


class Scheduler(Protocol):
    """Decides how much of each block is verified, whether or not the host has read it.

    `threshold`: the device itself cuts a block before its first confidence below it; None: it
    does not.
    """

    threshold: float | None

    def admit(
        self,
        confidences: torch.Tensor | None,
        limits: Sequence[int],
        depth: int = CONTEXT_TOKENS,
    ) -> list[int]:
        """For blocks the host has read: confidences [R, K] (None without a confidence head), limits
        R <= K, `depth` tokens of context per request -> R lengths."""
        ...

    def even_length(self, survival: Sequence[Sequence[float]], choices: Sequence[int]) -> int:
        """For blocks not read yet: one of the given lengths, the same for all requests, by the
        survival [R, K] of an earlier round."""
        ...


class FullSchedule:
    """Verify everything that was drafted, or a fixed number of drafts."""

    threshold: float | None = None

    def __init__(self, most_drafts: int | None = None) -> None:
        self._most_drafts = most_drafts

    def admit(
        self,
        confidences: torch.Tensor | None,
        limits: Sequence[int],
        depth: int = CONTEXT_TOKENS,
    ) -> list[int]:
        """As Scheduler.admit."""
        most = self._most_drafts
        return [limit if most is None else min(limit, most) for limit in limits]

    def even_length(self, survival: Sequence[Sequence[float]], choices: Sequence[int]) -> int:
        most = self._most_drafts
        return max((n for n in choices if most is None or n <= most), default=min(choices))


class ThresholdSchedule:
    """Verify up to the first position whose confidence is below a fixed threshold."""

    def __init__(self, threshold: float) -> None:
        self.threshold: float | None = threshold

    def admit(
        self,
        confidences: torch.Tensor | None,
        limits: Sequence[int],
        depth: int = CONTEXT_TOKENS,
    ) -> list[int]:
        """As Scheduler.admit."""
        if confidences is None or self.threshold is None:
            return list(limits)
        confident = (confidences >= self.threshold).int().cumprod(dim=1).sum(dim=1)
        return [min(n, limit) for n, limit in zip(confident.tolist(), limits, strict=True)]

    def even_length(self, survival: Sequence[Sequence[float]], choices: Sequence[int]) -> int:
        return max(choices)  # the device cuts the block


class SpsSchedule:
    """Admit by survival while the expected throughput Θ = (R + Σ survival) · SPS rises. `prices`:
    of the experts that rows bring; `acceptance`: for drafts without confidences, in place of
    these. Both are of finished rounds."""

    threshold: float | None = None

    def __init__(self, table: SpsTable, prices: ExpertPrices | None = None) -> None:
        self.table, self.prices = table, prices
        self.acceptance: Acceptance | None = None
        self._priced_at = 0
        self._curves: dict[tuple[int, int], SpsCurve] = {}
        self._curves_of = table

    def _steps(self, num_requests: int, depth: int) -> Callable[[int], float]:
        """Steps per second by the number of rows."""
        rounds = 0 if self.prices is None else self.prices.rounds
        if self._curves_of is not self.table or self._priced_at != rounds:
            self._curves_of, self._priced_at = self.table, rounds
            self._curves.clear()
        key = num_requests, depth // DEPTH_STEP
        if key not in self._curves:
            middle = (key[1] * DEPTH_STEP) + DEPTH_STEP // 2
            self._curves[key] = self.curve(num_requests, middle)
        return self._curves[key].steps_per_second

    def curve(self, num_requests: int, depth: int = CONTEXT_TOKENS) -> SpsCurve:
        """What passes are expected to cost at present."""
        curve = self.table.curve(num_requests, depth)
        return curve if self.prices is None else self.prices.priced(curve)

    def admit(
        self,
        confidences: torch.Tensor | None,
        limits: Sequence[int],
        depth: int = CONTEXT_TOKENS,
    ) -> list[int]:
        """As Scheduler.admit."""
        if confidences is None and self.acceptance is not None:
            confidences = torch.tensor([self.acceptance.rates] * len(limits))
        if confidences is None:
            return list(limits)
        num_requests = len(limits)
        lengths = [0] * num_requests
        expected, steps = float(num_requests), self._steps(num_requests, depth)
        best = expected * steps(num_requests)
        for survival, request in _by_survival(confidences, limits):
            throughput = (expected + survival) * steps(num_requests + sum(lengths) + 1)
            if throughput < best:
                break
            expected, best = expected + survival, throughput
            lengths[request] += 1
        return lengths

    def even_length(self, survival: Sequence[Sequence[float]], choices: Sequence[int]) -> int:
        num_requests = len(survival)
        steps = self._steps(num_requests, CONTEXT_TOKENS)

        def throughput(length: int) -> float:
            expected = num_requests + sum(sum(row[:length]) for row in survival)
            return expected * steps(num_requests * (length + 1))

        return max(choices, key=throughput)


class AsyncSpsSchedule(SpsSchedule):
    """The budget is chosen from the survival of two rounds ago, by a search over all budgets, so
    that a step in SPS is no trap; the round's own survival says which drafts it admits.

    Causal again: the budget knows nothing of this round, and a draft's rank in its block does not
    depend on later ones. It can be computed while the device works.
    """

    def __init__(self, table: SpsTable, prices: ExpertPrices | None = None) -> None:
        super().__init__(table, prices)
        self._earlier: deque[list[list[float]]] = deque(maxlen=2)

    def admit(
        self,
        confidences: torch.Tensor | None,
        limits: Sequence[int],
        depth: int = CONTEXT_TOKENS,
    ) -> list[int]:
        """As Scheduler.admit."""
        if confidences is None:
            return list(limits)
        if len(self._earlier) < 2:
            lengths = super().admit(confidences, limits, depth)
        else:
            budget = self._budget(self._earlier[0], len(limits), depth)
            lengths = [0] * len(limits)
            for _, request in _by_survival(confidences, limits)[:budget]:
                lengths[request] += 1
        self._earlier.append(confidences.cumprod(dim=1).tolist())
        return lengths

    def _budget(self, survival: list[list[float]], num_requests: int, depth: int) -> int:
        """The number of drafts that would have been best then, for as many requests as now."""
        then = len(survival)
        expected = [float(then)]
        for each in sorted((a for row in survival for a in row), reverse=True):
            expected.append(expected[-1] + each)

        steps = self._steps(then, depth)

        def throughput(budget: int) -> float:
            return expected[budget] * steps(then + budget)

        return round(max(range(len(expected)), key=throughput) * num_requests / then)


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
