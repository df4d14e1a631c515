"""Sessions over the golden pairs: tiny, and trained, so that drafts are really accepted."""

from collections.abc import Sequence
from pathlib import Path

from dspark.config import EngineConfig, RuntimeConfig, SamplingConfig, ScheduleConfig, StopConfig
from dspark.engine.loop import Engine
from dspark.engine.request import Request
from dspark.engine.schedule.policies import Scheduler, SpsSchedule
from dspark.engine.schedule.sps_profile import SpsTable
from dspark.engine.session import Session, open_session
from dspark.events import Finished
from dspark.hub import PairFiles
from dspark.progress import follow

GOLDEN = Path(__file__).parents[1] / "conformance"
PROMPT = (12, 21, 34, 52, 37, 36, 7, 47, 9, 63, 35, 0, 39, 47, 9, 30, 15, 22)

# Verifying 8 rows costs twice as much as one: the scheduler has something to decide.
TABLE = SpsTable(
    rows=(1, 8, 64), verify_seconds=(1.0, 2.0, 8.0), requests=(1,), draft_seconds=(0.3,)
)


def open_pair(target: Path, draft: Path | None, **config: object) -> Session:
    schedule = config.pop("schedule", ScheduleConfig("full"))
    files = PairFiles("test", target, draft)
    session = follow(
        open_session(
            files,
            RuntimeConfig("cpu", "float32"),
            EngineConfig(schedule=schedule, **config),  # type: ignore[arg-type]
        )
    )
    return session


def golden(variant: str, **config: object) -> Session:
    return open_pair(GOLDEN / variant / "target", GOLDEN / variant / "draft", **config)


def with_scheduler(session: Session, scheduler: Scheduler) -> Engine:
    old = session.engine
    return Engine(old.target, old.drafter, scheduler, session.tokenizer, old.config)


def scheduled(session: Session) -> Engine:
    return with_scheduler(session, SpsSchedule(TABLE))


def decode(engine: Engine, requests: Sequence[Request]) -> list[tuple[int, ...]]:
    """New token ids of each request, all decoded together, in the order given."""
    done = {e.request_id: e.token_ids for e in engine.run(requests) if isinstance(e, Finished)}
    return [done[request_id] for request_id in sorted(done)]


def request(
    prompt: Sequence[int] = PROMPT, max_tokens: int = 40, *, plain: bool = False, **sampling: object
) -> Request:
    return Request(
        tuple(prompt),
        SamplingConfig(**sampling),  # type: ignore[arg-type]
        StopConfig(max_tokens=max_tokens),
        plain,
    )
