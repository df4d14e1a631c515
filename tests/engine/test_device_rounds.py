"""Rounds that the device leads, in plain torch: the same events as the host's."""

from dataclasses import replace

import pytest
import torch

from dspark.config import ScheduleConfig, StopConfig
from dspark.engine.device_rounds import DeviceRounds
from dspark.engine.loop import Engine
from dspark.engine.rounds import HostRounds
from dspark.engine.scheduler import SpsSchedule
from dspark.engine.session import Session
from dspark.events import Finished, PrefillProgress, Round
from tests.engine.paged import paged  # noqa: F401
from tests.engine.pairs import PROMPT, TABLE, decode, golden, open_pair, request

pytestmark = pytest.mark.usefixtures("paged")
PROMPTS = [PROMPT, PROMPT[:3], PROMPT * 7]


def led_by_host(session: Session) -> Engine:
    """The same pair, caches and operations; the host reads every draft."""
    old = session.engine
    engine = Engine(old.target, old.drafter, old.scheduler, old._codec, old.config)
    engine._rounds = HostRounds(old.target, old.drafter, old.scheduler, old.config)
    return engine


def events_of(engine: Engine, requests) -> list:
    """Everything but the times and how sure the head was to the last bit."""
    told = []
    for event in engine.run(requests):
        if isinstance(event, Finished):
            stats = replace(event.stats, prefill_seconds=0.0, decode_seconds=0.0)
            event = replace(event, stats=stats, request_id=event.request_id)
        if isinstance(event, Round):
            event = replace(
                event, draft_seconds=0, verify_seconds=0, seconds=0, confidence=None,
                pieces=plain(event.pieces), rejected=plain(event.rejected),
            )  # fmt: skip
        told.append(event)
    return told


def plain(pieces):
    return tuple(replace(piece, confidence=None) for piece in pieces)


def by_request(events) -> dict[int, list]:
    found: dict[int, list] = {}
    for event in events:
        found.setdefault(event.request_id, []).append(event)
    return found


@pytest.mark.parametrize("variant", ["vanilla", "gated", "rnn", "dflash"])
def test_rounds_are_the_hosts(variant):
    session = golden(variant, prefill_chunk=40)
    assert isinstance(session.engine._rounds, DeviceRounds)
    host = led_by_host(session)
    for prompt in PROMPTS:
        for ask in (request(prompt), request(prompt, plain=True)):
            assert events_of(session.engine, [ask]) == events_of(host, [ask])


def test_confidences_are_the_hosts():
    session = golden("vanilla")
    ours, theirs = (
        torch.tensor([e.confidence for e in engine.run([request()]) if isinstance(e, Round)])
        for engine in (session.engine, led_by_host(session))
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("schedule", ["full", "threshold"])
def test_requests_together_are_the_hosts(schedule):
    """Joining, leaving and plain ones among them; in lanes of which some idle."""
    session = golden("vanilla", schedule=ScheduleConfig(schedule, 0.4), max_requests=3)
    asks = [request(p, 20 + 9 * i) for i, p in enumerate(PROMPTS)]
    asks += [request(PROMPT[:9], 30, plain=True), request(PROMPT[:5], 12)]
    ours = by_request(events_of(session.engine, asks))
    assert ours == by_request(events_of(led_by_host(session), asks))
    assert len(ours) == 5


def test_lengths_by_late_confidences_change_no_token():
    session = golden("vanilla")
    old = session.engine
    engine = Engine(old.target, old.drafter, SpsSchedule(TABLE))
    asks = [request(p, 40) for p in (*PROMPTS, PROMPT[:11])]
    verified = {e.verified for e in engine.run(asks) if isinstance(e, Round)}
    assert len(verified) > 1
    assert decode(engine, asks) == [decode(old, [replace(a, plain=True)])[0] for a in asks]


@pytest.mark.parametrize("plain", [True, False])
def test_stop_tokens_end_it_and_drop_the_round_under_way(plain):
    session = golden("vanilla")
    written = decode(session.engine, [request(max_tokens=60)])[0]
    target = session.engine.target
    for token in list(dict.fromkeys(written))[:12]:
        target.spec = replace(target.spec, stop_token_ids=frozenset([token]))
        asks = [request(max_tokens=60, plain=plain), request(PROMPT[:4], 25)]
        ours = by_request(events_of(session.engine, asks))
        end = next(iter(ours.values()))[-1]
        assert end.token_ids == written[: written.index(token) + 1]
        assert end.reason == "stop_token"


@pytest.mark.parametrize("max_tokens", [1, 2, 7, 40])
def test_max_tokens_is_exact(max_tokens):
    session = golden("vanilla")
    ours, theirs = (
        events_of(engine, [request(max_tokens=max_tokens)])
        for engine in (session.engine, led_by_host(session))
    )
    assert ours == theirs and len(ours[-1].token_ids) == max_tokens


def test_context_end_is_the_hosts(tiny_llama_dir, make_tiny_head):
    session = open_pair(tiny_llama_dir, make_tiny_head(tiny_llama_dir))
    ask = request([5 + i % 50 for i in range(session.context_limit - 20)], 1000)
    ours, theirs = events_of(session.engine, [ask]), events_of(led_by_host(session), [ask])
    assert ours == theirs
    assert ours[-1].reason == "context" and len(ours[-1].token_ids) == 21


def test_cancel_drops_the_round_under_way():
    session = golden("vanilla")
    whole = decode(session.engine, [request(max_tokens=200)])[0]
    events = []
    for event in session.generate(PROMPT, stop=StopConfig(max_tokens=200)):
        events.append(event)
        if isinstance(event, Round) and event.index == 3:
            session.cancel()
    assert events[-1].reason == "cancelled"
    assert sum(isinstance(event, Round) for event in events) == 4
    assert events[-1].token_ids == whole[: len(events[-1].token_ids)]
    assert decode(session.engine, [request(max_tokens=200)])[0] == whole


def test_a_request_left_early_changes_no_other():
    session = golden("vanilla")
    whole = decode(session.engine, [request(max_tokens=50)])[0]
    for event in session.generate(PROMPT[:6], stop=StopConfig(max_tokens=50)):
        if isinstance(event, Round):
            break
    assert decode(session.engine, [request(max_tokens=50)])[0] == whole


def test_a_warm_cache_is_a_fresh_one():
    session = golden("vanilla")
    first = decode(session.engine, [request(PROMPT, 30)])[0]
    longer = request((*PROMPT, *first[:25], 5, 6, 7))
    warm = events_of(session.engine, [longer])
    fresh = events_of(golden("vanilla").engine, [longer])
    assert warm[-1].token_ids == fresh[-1].token_ids
    assert sum(isinstance(e, PrefillProgress) for e in warm) == 1
