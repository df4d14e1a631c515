"""The demo pair: greedy output with drafts is plain decoding's, on every prompt of the bench."""

import pytest

from dspark.bench.prompts import own_prompts
from dspark.config import EngineConfig, RuntimeConfig, ScheduleConfig
from dspark.engine.session import Session, open_session
from dspark.progress import follow
from tests.engine.pairs import decode
from tests.engine.pairs import request as ask

MAX_TOKENS = {"auto": 128, "float32": 40}  # in its codes, and unpacked, which is slow


@pytest.fixture(scope="module", params=MAX_TOKENS)
def dtype(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def max_tokens(dtype) -> int:
    return MAX_TOKENS[dtype]


@pytest.fixture(scope="module")
def session(dtype, demo_files) -> Session:
    assert demo_files.draft is not None
    config = EngineConfig(schedule=ScheduleConfig("full"))
    return follow(open_session(demo_files, RuntimeConfig("cpu", dtype), config))


@pytest.fixture(scope="module")
def prompts(session) -> list[list[int]]:
    return [
        session.encode_chat([{"role": "user", "content": prompt.text}]) for prompt in own_prompts()
    ]


@pytest.fixture(scope="module")
def plain(session, prompts, max_tokens) -> list[tuple[int, ...]]:
    return [decode(session.engine, [ask(p, max_tokens, plain=True)])[0] for p in prompts]


@pytest.mark.demo
@pytest.mark.parametrize("mode", ["auto", "full", "threshold"])
def test_greedy_identity_on_every_prompt(session, prompts, plain, max_tokens, mode):
    engine = session.with_schedule(ScheduleConfig(mode, 0.5)).engine
    assert [decode(engine, [ask(p, max_tokens)])[0] for p in prompts] == plain


@pytest.mark.demo
def test_greedy_identity_in_company(session, prompts, plain, max_tokens):
    assert decode(session.engine, [ask(p, max_tokens) for p in prompts]) == plain


@pytest.mark.demo
def test_drafts_are_worth_it(session, prompts):
    """No figure, which the bench gives: a head of another target gets one draft in fifty right."""
    events = [e for p in prompts[:4] for e in session.generate(p, ask(p, 64).sampling)]
    rounds = [event for event in events if hasattr(event, "accepted")]
    assert sum(r.accepted for r in rounds) / len(rounds) > 0.2
