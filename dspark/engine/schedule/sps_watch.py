"""Notices that rounds no longer take what the SPS table says, and measures it again.

A table that was measured while something else kept the machine busy would otherwise decide for
good how much is verified.
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
DRIFT = 1.5  # times what the table says, or a part of it
PAUSE_SECONDS = 30.0  # at least, between two measurements
TRIALS = 4


class SpsWatch:
    """Follows the rounds of single requests; drafting for several is measured when it first
    happens, at their own slots."""

    def __init__(self, schedule: SpsSchedule, path: Path) -> None:
        self._schedule, self._path = schedule, path
        self._ratios: deque[float] = deque(maxlen=WINDOW)
        self._usual: float | None = 1.0  # of a round's seconds to the table's; None: to be seen
        self._next_at = 0.0

    def follow(self, target: Target, drafter: Drafter, outcomes: Sequence[Outcome]) -> None:
        """Take note of one round; measure again if the last ones took something else for long."""
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
        """Drafting for 2, 4, 8, ... requests, the largest that these are enough for."""
        num_requests = 1 << (len(outcomes).bit_length() - 1)
        if num_requests in self._schedule.table.requests:
            return
        slots = [outcome.active.draft_slot for outcome in outcomes[:num_requests]]
        if not all(outcome.active.is_open for outcome in outcomes[:num_requests]):
            return  # one of them has just ended
        seconds = statistics.median(draft_seconds(drafter, slots, target.device, TRIALS))
        self._schedule.table = self._schedule.table.with_requests(num_requests, seconds)
        self._schedule.table.save(self._path)

    def _is_outdated(self) -> bool:
        if len(self._ratios) < WINDOW:
            return False
        ratio = statistics.median(self._ratios)
        if self._usual is None:
            self._usual = ratio  # what sampling and rollback add to a freshly measured pass
        has_drifted = not 1 / DRIFT < ratio / self._usual < DRIFT
        return has_drifted and time.monotonic() >= self._next_at

    def _has_room(self, target: Target, drafter: Drafter, outcome: Outcome) -> bool:
        return context_left(target, outcome.active) >= max(measured_rows(drafter.block_size))

    def _measure(self, target: Target, drafter: Drafter, outcome: Outcome) -> None:
        slot, draft_slot = outcome.active.slot, outcome.active.draft_slot
        pair = self._schedule.table.pair
        table = measure_sps_at(target, drafter, slot, draft_slot, pair, TRIALS)
        table.save(self._path)  # company is measured again when it comes
        self._schedule.table = table
        self._ratios.clear()
        self._usual = None
        self._next_at = time.monotonic() + PAUSE_SECONDS
