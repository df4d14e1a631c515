"""Measures the SPS table again when rounds no longer match it.

Otherwise a table measured on a busy machine would decide permanently how much is verified.
"""

import statistics
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from dspark.drafters.base import Drafter
from dspark.engine.rounds.host import Outcome, context_left
from dspark.engine.schedule.policies import SpsSchedule
from dspark.engine.schedule.sps_profile import draft_seconds, measure_sps_at, measured_rows
from dspark.targets.base import Target

WINDOW = 12  # rounds whose median is compared
DRIFT = 1.5  # ratio to the table's time, or its inverse
PAUSE_SECONDS = 30.0  # minimum between two measurements
TRIALS = 4


class SpsWatch:
    """Follows the rounds of single requests; drafting for several is measured at its first
    occurrence, with their own slots."""

    def __init__(self, schedule: SpsSchedule, path: Path) -> None:
        self._schedule, self._path = schedule, path
        self._ratios: deque[float] = deque(maxlen=WINDOW)
        # ratio of a round's seconds to the table's; None: not known yet
        self._usual: float | None = 1.0
        self._next_at = 0.0

    def follow(self, target: Target, drafter: Drafter, outcomes: Sequence[Outcome]) -> None:
        """Record one round; measure again if recent rounds persistently differ from the table."""
        drafted = [outcome for outcome in outcomes if outcome.draft]
        if len(drafted) > 1:
            self._measure_company(target, drafter, drafted)
        if len(outcomes) != 1 or not drafted:
            return
        outcome = drafted[0]
        expected = 1.0 / self._schedule.table.steps_per_second(outcome.verified + 1, 1)
        self._ratios.append((outcome.draft_seconds + outcome.verify_seconds) / expected)
        if self._is_outdated() and self._has_room(target, drafter, outcome):
            self._measure(target, drafter, outcome)

    def _measure_company(
        self, target: Target, drafter: Drafter, outcomes: Sequence[Outcome]
    ) -> None:
        """Measure drafting for the largest of 2, 4, 8, ... requests that are available."""
        num_requests = 1 << (len(outcomes).bit_length() - 1)
        if num_requests in self._schedule.table.requests:
            return
        slots = [outcome.active.draft_slot for outcome in outcomes[:num_requests]]
        if not all(outcome.active.is_open for outcome in outcomes[:num_requests]):
            return  # one of them has ended
        seconds = statistics.median(draft_seconds(drafter, slots, target.device, TRIALS))
        self._schedule.table = self._schedule.table.with_requests(num_requests, seconds)
        self._schedule.table.save(self._path)

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
