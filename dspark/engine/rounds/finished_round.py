"""What a finished round tells those who decide about the next ones: parking and the schedule."""

from collections.abc import Sequence
from typing import NamedTuple

from dspark.engine.schedule.parking import Parking
from dspark.engine.schedule.sps_watch import SpsWatch
from dspark.targets.expert_use import ExpertUse

FIRST_PARKED = 16  # in a row that all correct the table
PARKED_EVERY = 4  # rounds of which one does, after them: they are all alike


class FinishedRound(NamedTuple):
    """Drafts verified and accepted of each request, the `rows` of its pass, and their context's
    `depth`. `caught_up` of its seconds went into what was committed without drafts; `use` is of
    routed experts. `hides_step`: the host's own work was done while a device was at it."""

    blocks: Sequence[tuple[int, int]]
    rows: int
    depth: int
    has_drafts: bool
    seconds: float
    pass_seconds: float
    caught_up: float = 0.0
    use: ExpertUse | None = None
    hides_step: bool = False


class RoundObserver:
    """A round is told once the engine's step is over, since its work outside of rounds is part of
    what a round costs."""

    def __init__(self, parking: Parking | None, sps_watch: SpsWatch | None) -> None:
        self._parking, self._sps_watch = parking, sps_watch
        self._last: FinishedRound | None = None
        self._parked, self._requests = 0, 0  # parked rounds in a row, of so many requests

    def keep(self, finished: FinishedRound) -> None:
        """Until it is told."""
        self._last = finished

    def tell(self, step_seconds: float) -> None:
        """The round that was kept, if any; `step_seconds` are those of its step."""
        last, self._last = self._last, None
        if last is None:
            return
        seconds = (last.seconds if last.hides_step else step_seconds) - last.caught_up
        drafts, caught_up = last.has_drafts, last.caught_up
        watch = self._sps_watch if self._is_followed(last) else None
        if self._parking is not None:
            self._parking.record(seconds, last.blocks, has_drafts=drafts, caught_up=caught_up)
        if watch is not None:
            others = seconds - last.pass_seconds
            shape = (len(last.blocks), last.rows, last.depth)
            times = (last.pass_seconds, others)
            watch.follow(*shape, *times, has_drafts=drafts, use=last.use)

    def _is_followed(self, last: FinishedRound) -> bool:
        """Whether the round corrects the table. Experts are counted in every round."""
        requests = len(last.blocks)
        if last.has_drafts or last.use is not None or requests != self._requests:
            self._parked = 0
        self._requests = requests
        if self._parking is None or not self._parking.is_parked(requests):
            return True
        self._parked += not last.has_drafts
        return self._parked <= FIRST_PARKED or self._parked % PARKED_EVERY == 0
