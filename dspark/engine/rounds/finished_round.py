"""What a finished round tells those who decide about the next ones: parking and the schedule."""

from collections.abc import Sequence
from typing import NamedTuple

from dspark.engine.schedule.parking import Parking
from dspark.engine.schedule.sps_watch import SpsWatch
from dspark.targets.expert_use import ExpertUse


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
        if self._parking is not None:
            self._parking.record(seconds, last.blocks, has_drafts=drafts, caught_up=caught_up)
        if self._sps_watch is not None:
            others = seconds - last.pass_seconds
            shape = (len(last.blocks), last.rows, last.depth)
            times = (last.pass_seconds, others)
            self._sps_watch.follow(*shape, *times, has_drafts=drafts, use=last.use)
