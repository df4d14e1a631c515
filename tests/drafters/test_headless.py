"""Drafters without a head change no text, whatever they draft."""

from dataclasses import replace

import pytest

from dspark.config import HEADLESS, EngineConfig, SamplingConfig, ScheduleConfig
from dspark.drafters.kinds import HEADLESS_DRAFTERS
from dspark.engine.session import Session, open_session
from dspark.hub import PairFiles
from dspark.progress import follow
from tests.engine.pairs import GOLDEN, PROMPT, decode, request

PROMPTS = [PROMPT, PROMPT[:1], PROMPT * 3]


@pytest.fixture(scope="module", params=HEADLESS)
def session(request: pytest.FixtureRequest) -> Session:
    files = PairFiles("test", GOLDEN / "vanilla" / "target", None, headless=request.param)
    session = follow(open_session(files, config=EngineConfig(prefill_chunk=7)))
    assert type(session.engine.drafter) is HEADLESS_DRAFTERS[request.param]
    return session


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(0.8, seed=3)])
def test_its_text_is_plain_decodings(session: Session, sampling: SamplingConfig) -> None:
    asks = [replace(request(p, 40), sampling=sampling) for p in PROMPTS]
    plain = [decode(session.engine, [replace(ask, plain=True)])[0] for ask in asks]
    assert [decode(session.engine, [ask])[0] for ask in asks] == plain
    assert decode(session.engine, asks) == plain
    threshold = session.with_schedule(ScheduleConfig("threshold", 0.9))
    assert decode(threshold.engine, asks) == plain
