"""Measures the SPS table again when rounds no longer match it.

Otherwise a table measured on a busy machine would decide permanently how much is verified.
"""

import statistics
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from dspark.drafters.base import Drafter
from dspark.engine.rounds.host import Outcome, context_left, mean_length
from dspark.engine.schedule.policies import SpsSchedule
from dspark.engine.schedule.sps_profile import (
    CONTEXT_TOKENS,
    measure_curve,
    measure_sps_at,
    measured_rows,
)
from dspark.targets.base import Target

WINDOW = 12  # rounds whose median is compared
DEEPER = 4  # times the greatest depth known: measured again
DRIFT = 1.5  # ratio to the table's time, or its inverse
PAUSE_SECONDS = 30.0  # minimum between two measurements
TRIALS = 4


class SpsWatch:
    """Follows rounds with drafts, and those in which drafting is parked. Several requests, and
    contexts much deeper than those measured, are measured at their first occurrence, with the
    requests' own slots."""

    def __init__(self, schedule: SpsSchedule, path: Path) -> None:
        self._schedule, self._path = schedule, path
        self._ratios: deque[float] = deque(maxlen=WINDOW)
        # ratio of a round's seconds to the table's; None: not known yet
        self._usual: float | None = 1.0
        self._next_at = 0.0

    def follow(self, target: Target, drafter: Drafter, outcomes: Sequence[Outcome]) -> None:
        """Record one round; measure again if recent rounds persistently differ from the table."""
        if not all(outcome.draft or outcome.is_parked for outcome in outcomes):
            return
        first = outcomes[0]
        depth = mean_length(target, [outcome.active for outcome in outcomes])
        if not first.is_parked:
            self._measure_new(target, drafter, outcomes, depth)
        rows = sum(outcome.verified + 1 for outcome in outcomes)
        table, size = self._schedule.table, len(outcomes)
        expected = table.verify(rows, size, depth)
        expected += 0.0 if first.is_parked else table.draft(size, depth)
        self._ratios.append((first.draft_seconds + first.verify_seconds) / expected)
        if self._is_outdated() and self._has_room(target, drafter, first):
            self._measure(target, drafter, first)

    def _measure_new(
        self, target: Target, drafter: Drafter, outcomes: Sequence[Outcome], depth: int
    ) -> None:
        """Measure the largest of 1, 2, 4, 8, ... requests that are available, at a depth four
        times the greatest one known."""
        num_requests = 1 << (len(outcomes).bit_length() - 1)
        table = self._schedule.table
        known = [curve.depth for curve in table.curves if curve.requests == num_requests]
        known += [CONTEXT_TOKENS] * (num_requests == 1)
        if known and depth < DEEPER * max(known):
            return
        chosen = [outcome.active for outcome in outcomes[:num_requests]]
        whole = drafter.block_size + 1
        if not all(a.is_open and context_left(target, a) >= whole for a in chosen):
            return  # one of them has ended
        slots = [active.slot for active in chosen]
        draft_slots = [active.draft_slot for active in chosen]
        curve = measure_curve(target, drafter, slots, draft_slots, depth, TRIALS)
        table = table.with_curve(curve)
        if num_requests > 1 and num_requests not in table.requests:
            table = table.with_requests(num_requests, curve.draft_seconds)
        self._schedule.table = table
        table.save(self._path)
        self._ratios.clear()
        self._usual = None

    def _is_outdated(self) -> bool:
        if len(self._ratios) < WINDOW:
            return False
        ratio = statistics.median(self._ratios)
        if self._usual is None:
            self._usual = ratio  # time of sampling and rollback on top of a newly measured pass
        has_drifted = not 1 / DRIFT < ratio / self._usual < DRIFT
        return has_drifted and time.monotonic() >= self._next_at

    def _has_room(self, target: Target, drafter: Drafter, outcome: Outcome) -> bool:
        return context_left(target, outcome.active) >= max(measured_rows(drafter.block_size))

    def _measure(self, target: Target, drafter: Drafter, outcome: Outcome) -> None:
        slot, draft_slot = outcome.active.slot, outcome.active.draft_slot
        pair = self._schedule.table.pair
        table = measure_sps_at(target, drafter, slot, draft_slot, pair, TRIALS)
        table.save(self._path)  # batches are measured again when they occur
        self._schedule.table = table
        self._ratios.clear()
        self._usual = None
        self._next_at = time.monotonic() + PAUSE_SECONDS
