"""Promise: an answer by a JSON schema is valid, and the same with and without drafts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dspark.config import LogitsConfig, SamplingConfig, StopConfig
from dspark.drafters.lookup import LookupDrafter
from dspark.engine.loop import Engine
from dspark.engine.request import Request
from dspark.engine.rounds.by_turns import DeviceAndHostRounds
from dspark.engine.schedule.policies import FullSchedule
from dspark.events import Finished, Round
from tests.engine.paged import paged  # noqa: F401
from tests.engine.pairs import open_pair

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "sizes": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 99},
            "maxItems": 2,
        },
        "kind": {"enum": ["small", "large"]},
    },
    "required": ["name", "sizes", "kind"],
    "additionalProperties": False,
}


def check(value: object) -> None:
    assert isinstance(value, dict) and list(value) == ["name", "sizes", "kind"]
    assert len(value["name"]) <= 6 and value["kind"] in ("small", "large")
    assert len(value["sizes"]) <= 2 and all(0 <= size < 100 for size in value["sizes"])


@pytest.fixture
def session(tiny_chat_dir: Path, make_tiny_head):
    pytest.importorskip("llguidance")
    with open_pair(tiny_chat_dir, make_tiny_head(tiny_chat_dir)) as opened:
        yield opened


def asks_of(session) -> list[Request]:
    engine = session.engine
    vocabulary = session.tokenizer.grammars(engine.target.spec.vocab_size, engine.stop_token_ids)
    grammar = vocabulary.of_schema(SCHEMA)
    prompt = tuple(session.encode_prompt("Describe it."))
    # without a penalty a random model repeats one digit for ever
    rules = LogitsConfig(frequency_penalty=1.5)
    samplings = [SamplingConfig()]
    samplings += [SamplingConfig(1.0, seed=seed) for seed in range(2)] + [SamplingConfig(1.0)]
    stop = StopConfig(max_tokens=300)
    return [Request(prompt, each, stop, logits=rules, grammar=grammar) for each in samplings]


def decoded(engine: Engine, asks: list[Request]) -> tuple[list[Finished], int]:
    events = list(engine.run(asks))
    ends = sorted((e for e in events if isinstance(e, Finished)), key=lambda e: e.request_id)
    return ends, sum(e.accepted for e in events if isinstance(e, Round))


def check_all(session, num_asks: int | None = None) -> None:
    asks = asks_of(session)[:num_asks]
    ends, accepted = decoded(session.engine, asks)
    assert accepted
    for end in ends:
        assert end.reason == "stop_token"
        check(json.loads(end.text))
    plain, _ = decoded(session.engine, [replace(ask, plain=True) for ask in asks])
    assert [e.text for e in ends[:3]] == [e.text for e in plain[:3]]
    lookup = Engine(session.engine.target, LookupDrafter(), FullSchedule(), session.tokenizer)
    looked_up, _ = decoded(lookup, asks)
    assert [e.text for e in ends[:3]] == [e.text for e in looked_up[:3]]


def test_answers_are_valid_and_those_of_plain_decoding(session):
    check_all(session)


@pytest.mark.usefixtures("paged")
def test_beside_rounds_of_the_device(session):
    assert isinstance(session.engine._rounds, DeviceAndHostRounds)
    check_all(session, 2)
