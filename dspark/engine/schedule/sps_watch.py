"""Corrects the SPS table by the rounds that run anyway, so that no request waits for a measurement.

For each number of requests, up to a factor of two, a line is fitted to what passes took: plain
ones give its level, those with drafts its slope over the rows. What rounds take besides is followed
for both kinds. Old rounds are forgotten, and so is a busy minute.
"""

from dataclasses import dataclass, replace
from math import log
from pathlib import Path

from dspark.engine.schedule.policies import DEPTH_STEP, SpsSchedule
from dspark.engine.schedule.sps_profile import CONTEXT_TOKENS, Correction, SpsCurve, SpsTable
from dspark.targets.expert_use import ExpertUse

MEMORY = 1 - 1 / 48  # per round
RIDGE = 0.02  # variance, in times of twice the rows, at which rounds say as much as the table does
FIRST_ROUNDS = 4  # that a stored correction counts for
OUTLIER = 2.0  # times what was expected: another program had the processor
KNOWN = 8.0  # rounds after which one can be an outlier
EVERY = 16  # rounds between two corrections of the table
LEAST_SECONDS = LEAST_RIDGE = 1e-9


@dataclass(slots=True)
class _Fit:
    """Of one number of requests: x is the pass by the table, over a plain one, less 1; y its time
    over a plain one by the table."""

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    ridge: float = 0.0
    draft: float = 1.0
    num_drafts: int = 0
    rest: float = 0.0  # of a plain round, what is not its pass, over a plain pass by the table
    num_plain: int = 0

    def add(self, x: float, y: float, scale: float) -> None:
        """`scale` is x at twice the rows of a plain pass."""
        if self.weight >= KNOWN:
            level, slope = self.line()
            y = min(y, OUTLIER * (level + slope * x))
        self.weight = MEMORY * self.weight + 1
        self.x, self.y = MEMORY * self.x + x, MEMORY * self.y + y
        self.xx, self.xy = MEMORY * self.xx + x * x, MEMORY * self.xy + x * y
        self.ridge = MEMORY * self.ridge + RIDGE * scale * scale

    def add_draft(self, ratio: float) -> None:
        self.num_drafts += 1
        self.draft = _follow(self.draft, ratio, self.num_drafts)

    def add_rest(self, ratio: float) -> None:
        self.num_plain += 1
        self.rest = _follow(self.rest, ratio, self.num_plain)

    def line(self) -> tuple[float, float]:
        """Level and slope; where rows hardly varied, as steep as the table."""
        x, y = self.x / self.weight, self.y / self.weight
        variance, covariance = self.xx / self.weight - x * x, self.xy / self.weight - x * y
        as_measured, ridge = y / (1 + x), self.ridge / self.weight + LEAST_RIDGE
        slope = max((covariance + ridge * as_measured) / (variance + ridge), 0.0)
        return max(y - slope * x, as_measured / OUTLIER), slope

    def correction(self, num_requests: int) -> Correction:
        level, slope = self.line()
        return Correction(num_requests, level, slope, self.draft, self.rest)


def _follow(so_far: float, ratio: float, count: int) -> float:
    """The mean of so many ratios and the first guess, old ones forgotten."""
    ratio = min(ratio, OUTLIER * so_far) if count > KNOWN and so_far else ratio
    return so_far + max(1 - MEMORY, 1 / (count + 1)) * (ratio - so_far)


def _fit_of(known: Correction) -> _Fit:
    """As if some rounds had said so."""
    fit = _Fit(draft=known.draft, num_drafts=FIRST_ROUNDS, rest=known.rest, num_plain=FIRST_ROUNDS)
    for _ in range(FIRST_ROUNDS // 2):
        for x in (0.0, 0.5):
            fit.add(x, known.level + known.slope * x, 0.0)
    return fit


class SpsWatch:
    """Follows plain rounds and those with drafts."""

    def __init__(self, schedule: SpsSchedule, path: Path) -> None:
        self._schedule, self._path = schedule, path
        self._rounds, self._is_changed = 0, False
        self._fits: dict[int, _Fit] = {}
        self._begin_with(schedule.table)

    def follow(
        self,
        num_requests: int,
        rows: int,
        depth: int,
        pass_seconds: float,
        other_seconds: float,
        *,
        has_drafts: bool,
        use: ExpertUse | None = None,
    ) -> None:
        """One finished round: `other_seconds` are all that is not the pass; `use`: of routed
        experts, which have prices of their own."""
        if self._schedule.table is not self._table:  # somebody has measured again
            self._begin_with(self._schedule.table)
        curve = self._curve(num_requests, depth)
        plain = curve.verify(num_requests)
        if use is not None and (prices := self._schedule.prices) is not None:
            prices.record(use)
            if use.far:  # what such a pass took above a measured one is the far reads'
                prices.record_far(use, pass_seconds, curve, rows)
            pass_seconds = prices.as_measured(use, curve, rows, pass_seconds)
        key = 1 << (num_requests - 1).bit_length()
        if key not in self._fits:
            self._fits[key] = self._like_neighbours(key)
        fit = self._fits[key]
        excess, scale = (curve.verify(n) / plain - 1 for n in (rows, 2 * num_requests))
        fit.add(excess, pass_seconds / plain, scale)
        if has_drafts:
            fit.add_draft(other_seconds / max(curve.draft_seconds, LEAST_SECONDS))
        else:
            fit.add_rest(other_seconds / plain)
        self._rounds += 1
        if self._rounds % EVERY == 0:
            self._correct()

    def save(self) -> None:
        if self._is_changed:
            self._is_changed = False
            self._schedule.table.save(self._path)

    def _correct(self) -> None:
        self._is_changed = True
        corrections = tuple(
            fit.correction(requests) for requests, fit in sorted(self._fits.items())
        )
        self._table = self._schedule.table = replace(self._measured, corrections=corrections)

    def _begin_with(self, table: SpsTable) -> None:
        self._table = table
        self._measured: SpsTable = replace(table, corrections=())
        self._curves: dict[tuple[int, int], SpsCurve] = {}
        self._fits = {known.requests: _fit_of(known) for known in table.corrections}

    def _like_neighbours(self, num_requests: int) -> _Fit:
        """Of the nearest number of requests that is known."""
        near = sorted(self._fits, key=lambda each: abs(log(each / num_requests)))
        if not near:
            return _Fit()
        return _fit_of(self._fits[near[0]].correction(num_requests))

    def _curve(self, num_requests: int, depth: int) -> SpsCurve:
        key = num_requests, depth // DEPTH_STEP
        if key not in self._curves:
            middle = max(key[1] * DEPTH_STEP + DEPTH_STEP // 2, CONTEXT_TOKENS)
            self._curves[key] = self._measured.measured_curve(num_requests, middle)
        return self._curves[key]
