"""Many requests at once, of every kind: each has the answer that it would have alone."""

import random
from dataclasses import replace

import pytest

from dspark.config import EngineConfig, LogitsConfig, RuntimeConfig, ScheduleConfig
from dspark.engine.loop import Engine
from dspark.engine.request import Request
from dspark.engine.session import open_session
from dspark.events import Failed, Finished
from dspark.progress import follow
from dspark_kernels.paged_cache import PAGE
from tests.engine.paged import paged  # noqa: F401
from tests.engine.pairs import PROMPT, decode, golden, request

SYSTEM = tuple(3 + (i * 7) % 50 for i in range(40))
LONG = tuple(3 + (i * 11) % 50 for i in range(PAGE - 22))  # its answer goes over to a second page
SAMPLINGS = ({}, {"temperature": 0.8, "seed": 4}, {"temperature": 1.0})
PENALTIES = LogitsConfig(presence_penalty=0.7, repetition_penalty=1.3)


def asks_of_every_kind() -> list[Request]:
    """Shared beginnings, lengths up to more than a page, one token to 40, four temperatures, some
    with penalties."""
    draw, asks = random.Random(7), []
    for k in range(60):
        prompt = (*SYSTEM, *draw.sample(range(50), draw.randrange(1, 40)))
        if k % 3 == 0:
            prompt = (k, *LONG[draw.randrange(20) :])
        ask = request(prompt, draw.randrange(1, 41), plain=k % 5 == 4, **SAMPLINGS[k % 4 % 3])
        if k % 4 == 1:
            ask = replace(ask, sampling=replace(ask.sampling, temperature=draw.choice((0.3, 1.5))))
        asks.append(replace(ask, logits=PENALTIES) if k % 7 == 6 else ask)
    return asks


def asks_of(prompts, most_tokens: int) -> list[Request]:
    """Greedy, seeded and neither, with and without drafts, short answers and longer ones."""
    return [
        request(prompt, most_tokens - 2 * (k % 3), plain=k % 5 == 4, **SAMPLINGS[k % 3])
        for k, prompt in enumerate(prompts)
    ]


def check_load(engine: Engine, alone: Engine, asks, num_requests: int, seed: int) -> list[Finished]:
    """Requests come, are cancelled, and end; `alone` is what decodes one at a time."""
    draw, expected = random.Random(seed), {}
    room = engine._rounds.room
    before = [pool.num_pages - pool.num_free_pages for pool in room.pools]
    asked: dict[int, Request] = {}
    told: dict[int, list[int]] = {}
    done: dict[int, Finished] = {}
    cancelled = set()
    while len(asked) < num_requests or engine.num_requests:
        if len(asked) < num_requests and draw.random() < 0.5:
            ask = draw.choice(asks)
            asked[engine.submit(ask)] = ask
        if draw.random() < 0.02 and (under_way := asked.keys() - done.keys()):
            cancelled.add(draw.choice(sorted(under_way)))
            engine.cancel(max(cancelled))
        for event in engine.step():
            assert not isinstance(event, Failed)
            if isinstance(event, Finished):
                done[event.request_id] = event
            else:
                told.setdefault(event.request_id, []).extend(p.token_id for p in event.pieces)
    assert done.keys() == asked.keys()
    for request_id, finished in done.items():
        ask, ids = asked[request_id], finished.token_ids
        assert tuple(told.get(request_id, ())) == ids
        if ask.sampling.acceptance == "rejection":
            continue
        if ask not in expected:
            (expected[ask],) = decode(alone, [replace(ask, plain=True)])
        wanted = expected[ask]
        assert ids == (wanted[: len(ids)] if finished.reason == "cancelled" else wanted)
        assert finished.reason == "cancelled" or request_id not in cancelled or ids == wanted
    engine.close()
    assert [pool.num_pages - pool.num_free_pages for pool in room.pools] == before
    return [*done.values()]


@pytest.mark.parametrize("leader", ["host", "device"])
@pytest.mark.parametrize("num_requests", [6, pytest.param(500, marks=pytest.mark.long)])
def test_nobody_notices_the_others(leader, num_requests, request):
    if leader == "device":
        request.getfixturevalue("paged")
    is_long = num_requests == 500
    engine = golden("vanilla", cache_tokens=(3 if is_long else 4) * PAGE, max_requests=6).engine
    prompts = [*((*SYSTEM, *PROMPT[k:]) for k in (4, 5)), *((k, *LONG[k:]) for k in (1, 2))]
    asks = asks_of_every_kind() if is_long else asks_of(prompts, 8)
    alone = golden("vanilla", prefix_cache_bytes=0).engine
    done = check_load(engine, alone, asks, num_requests, num_requests)
    assert sum(each.stats.cached_tokens for each in done) > 0
    if is_long:
        assert {"cancelled", "max_tokens"} <= {each.reason for each in done}
        assert leader == "host" or sum(each.stats.preemptions for each in done) > 0


@pytest.mark.demo
@pytest.mark.parametrize("num_requests", [40, pytest.param(500, marks=pytest.mark.long)])
def test_the_demo_under_load(num_requests, demo_files):
    """On a CPU's pages, few enough that requests make way for each other."""
    config = replace(EngineConfig(), schedule=ScheduleConfig("full"), max_requests=16)
    runtime = RuntimeConfig("cpu")
    alone = follow(open_session(demo_files, runtime, replace(config, prefix_cache_bytes=0)))
    engine = follow(
        open_session(demo_files, runtime, replace(config, cache_tokens=3 * PAGE))
    ).engine
    text = alone.encode_prompt("Tell me a story about the sea, a ship and its captain. " * 30)
    prompts = [text[k : PAGE - 12] for k in range(6)] + [(*text[:90], k) for k in range(3)]
    done = check_load(engine, alone.engine, asks_of(prompts, 24), num_requests, 1)
    assert sum(each.stats.cached_tokens for each in done) > 0
    assert sum(each.stats.preemptions for each in done) > 0
