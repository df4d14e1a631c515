"""What a pair's passes cost here, and what drafting should gain by number of requests."""

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from dspark.bench.prompts import BenchPrompt
from dspark.bench.summary import acceptance_by_position
from dspark.config import ScheduleConfig, StopConfig
from dspark.engine.current_device import on_device
from dspark.engine.request import Request
from dspark.engine.schedule.expected_gain import Gain, expected_gain
from dspark.engine.schedule.expert_prices import ExpertPrices
from dspark.engine.schedule.policies import SpsSchedule
from dspark.engine.schedule.sps_measure import measure_with_requests
from dspark.engine.schedule.sps_profile import CONTEXT_TOKENS, SpsCurve, SpsTable
from dspark.errors import InputError
from dspark.events import LoadProgress, Round
from dspark.targets.expert_use import RoutesExperts

if TYPE_CHECKING:
    from dspark.engine.session import Session

COUNTS = (1, 2, 4, 8, 16)
DEPTH = 1024  # tokens of the deeper context
TRIALS = 5
KNEE = 1.5  # times a pass of one row
TOKENS = 48  # of each answer from which acceptance is taken
PROMPTS = 8


@dataclass(frozen=True, slots=True)
class Profile:
    """`survival` [K] is the share of blocks whose first k drafts were accepted; `experts` what
    further rows bring of routed ones, and what one costs."""

    table: SpsTable
    survival: tuple[float, ...]
    gains: tuple[Gain, ...]
    experts: dict[str, Any] | None = None

    @property
    def knee(self) -> int:
        """The largest measured pass of one request that costs at most KNEE times one row."""
        single = self.table.verify_seconds[0]
        pairs = zip(self.table.rows, self.table.verify_seconds, strict=True)
        return max(rows for rows, seconds in pairs if seconds <= KNEE * single)

    def curve(self) -> list[tuple[int, float]]:
        """Seconds by rows of one request."""
        return list(zip(self.table.rows, self.table.verify_seconds, strict=True))

    def figures(self) -> dict[str, Any]:
        return {
            "table": asdict(self.table),
            "survival": list(self.survival),
            "knee": self.knee,
            "experts": self.experts,
            "gains": [{**asdict(each), "pays": each.pays} for each in self.gains],
        }


def run_profile(
    session: "Session", prompts: Sequence[BenchPrompt], counts: Sequence[int] = COUNTS
) -> Generator[LoadProgress, None, Profile]:
    """Measures passes and acceptance; the table is stored for the schedule."""
    engine = session.engine
    target, drafter, schedule = engine.target, engine.drafter, engine.scheduler
    if drafter is None or not isinstance(schedule, SpsSchedule):
        raise InputError(
            f"{session.name} has no head whose cost could be weighed", "Name one with --draft HEAD."
        )
    wanted = [(n, CONTEXT_TOKENS) for n in counts if n > 1 and target.spec.batches]
    if target.spec.context_limit > DEPTH + 2 * drafter.block_size:
        wanted.append((1, DEPTH))
    table, total = replace(schedule.table, corrections=()), len(wanted) + 1
    for done, (count, depth) in enumerate(wanted):
        yield LoadProgress(f"timing {count} at {depth} tokens", done, total)
        with on_device(target.device):
            curve = measure_with_requests(target, drafter, count, depth, TRIALS)
        table = _including(table, curve)
    schedule.table = table
    table.save(session.sps_path())
    yield LoadProgress("measuring acceptance", total - 1, total)
    prices = schedule.prices
    survival = _survival(session, prompts[:PROMPTS], prices)
    gains = tuple(expected_gain(schedule.curve(n), survival) for n in counts)
    return Profile(table, survival, gains, None if prices is None else prices.figures())


def _including(table: SpsTable, curve: SpsCurve) -> SpsTable:
    table = table.with_curve(curve)
    return (
        table if curve.requests == 1 else table.with_requests(curve.requests, curve.draft_seconds)
    )


def _survival(
    session: "Session", prompts: Sequence[BenchPrompt], prices: ExpertPrices | None
) -> tuple[float, ...]:
    """From rounds that verify whole blocks, whose experts `prices` learns."""
    engine = session.with_schedule(ScheduleConfig("full")).engine
    stop = StopConfig(max_tokens=TOKENS)
    rounds = []
    for event in engine.run([Request(each.token_ids, stop=stop) for each in prompts]):
        if isinstance(event, Round):
            rounds.append(event)
            if prices is not None and isinstance(engine.target, RoutesExperts):
                use = engine.target.expert_use()
                if use is not None:
                    prices.record(use)
    positions = acceptance_by_position(rounds)
    engine.close()
    return tuple(each.rate for each in positions)
