"""Keys and values in codes of 8 bits: drafts change nothing there either."""

from dataclasses import replace

import pytest

from dspark.config import EngineConfig, RuntimeConfig, ScheduleConfig
from dspark.engine.loop import Engine
from dspark.engine.rounds.device import DeviceRounds
from dspark.engine.schedule.policies import FullSchedule
from dspark.engine.session import Session, open_session
from dspark.errors import InputError
from dspark.events import Finished
from dspark.hub import PairFiles
from dspark.progress import follow
from tests.engine.paged import paged  # noqa: F401
from tests.engine.pairs import GOLDEN, PROMPT, decode, request

ASKS = [request(PROMPT[: 3 + 4 * i], 30 + i) for i in range(3)]


def opened(variant: str, kv: str) -> Session:
    folder = GOLDEN / variant
    files = PairFiles("test", folder / "target", folder / "draft")
    config = EngineConfig(schedule=ScheduleConfig("full"))
    return follow(open_session(files, RuntimeConfig("cpu", "float32", kv=kv), config))


def accepted_length(session: Session) -> float:
    """Tokens a round."""
    ended = [e for e in session.engine.run(ASKS) if isinstance(e, Finished)]
    return sum(len(e.token_ids) for e in ended) / sum(e.stats.rounds for e in ended)


@pytest.mark.parametrize(
    ("variant", "kv", "sampling"),
    [
        ("vanilla", "int8", {}),
        ("vanilla", "fp8", {"temperature": 0.8, "seed": 11}),
        ("eagle3", "int8", {"temperature": 0.8, "seed": 11}),
    ],
    ids=["device-int8", "device-fp8-seeded", "host-int8-seeded"],
)
@pytest.mark.usefixtures("paged")
def test_the_text_is_plain_decodings(variant, kv, sampling):
    """Together and alone, led by the device and by the host."""
    engine = opened(variant, kv).engine
    assert isinstance(engine._rounds, DeviceRounds) == (variant == "vanilla")
    asks = [replace(ask, sampling=replace(ask.sampling, **sampling)) for ask in ASKS]
    wanted = decode(Engine(engine.target, None, FullSchedule()), asks)
    assert decode(engine, asks) == wanted
    assert [decode(engine, [ask])[0] for ask in asks] == wanted


@pytest.mark.usefixtures("paged")
def test_as_many_drafts_are_accepted():
    """Within a tenth, of a pair that was trained with numbers."""
    plain = accepted_length(opened("vanilla", "auto"))
    assert plain > 2
    for kv in ("int8", "fp8"):
        assert accepted_length(opened("vanilla", kv)) > 0.9 * plain


def test_they_need_pages():
    with pytest.raises(InputError, match="int8 need a dense target"):
        opened("vanilla", "int8")
