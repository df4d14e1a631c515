"""What a server needs of the engine: nobody waits long for others, falls with them, or leaks."""

import random
import threading
from itertools import accumulate

import pytest
import torch

from dspark.engine.rounds.round_runner import Outcome
from dspark.errors import BrokenLogitsError
from dspark.events import Failed, Finished, PrefillProgress, Round
from dspark.kvcache.caches import PooledCache
from tests.engine.paged import paged  # noqa: F401
from tests.engine.pairs import PROMPT, decode, golden, request

LONG = tuple(3 + (i * 7) % 50 for i in range(600))
BROKEN = tuple(reversed(PROMPT))


class BrokenPromptError(RuntimeError):
    """What a kernel might raise."""


def break_prompt(engine, monkeypatch, prompt=BROKEN):
    """Prefilling this prompt raises; `begun` tells how often that happened."""
    whole, begun = engine.target.prefill, []

    def prefill(slot, token_ids, *rest):
        if tuple(token_ids.tolist()) == prompt:
            begun.append(1)
            raise BrokenPromptError("planted")
        return whole(slot, token_ids, *rest)

    monkeypatch.setattr(engine.target, "prefill", prefill)
    return begun


def drain(engine):
    """All events, until nothing is under way."""
    events = []
    while engine.num_requests:
        events += engine.step()
    return events


def texts(events):
    return {e.request_id: e.token_ids for e in events if isinstance(e, Finished)}


def alone(ask):
    return decode(golden("vanilla").engine, [ask])[0]


def test_a_prompt_that_raises_ends_alone(monkeypatch):
    engine = golden("vanilla").engine
    begun = break_prompt(engine, monkeypatch)
    asks = [request(PROMPT[k:], 20) for k in range(3)]
    ids = [engine.submit(ask) for ask in (asks[0], request(BROKEN), *asks[1:])]
    events = drain(engine)
    (failure,) = [e for e in events if isinstance(e, Failed)]
    assert failure.request_id == ids[1] and isinstance(failure.error, BrokenPromptError)
    assert begun == [1]
    assert texts(events) == {k: alone(ask) for k, ask in zip((ids[0], *ids[2:]), asks, strict=True)}


def test_a_round_that_raises_ends_only_what_raises_alone(monkeypatch):
    engine = golden("vanilla").engine
    asks = [request(PROMPT[k:], 20) for k in range(3)]
    ids = [engine.submit(ask) for ask in asks]
    advance = engine._rounds.advance

    def failing(batch) -> list[Outcome]:
        if any(active.request_id == ids[1] and active.rounds == 2 for active in batch):
            raise BrokenPromptError("planted")
        return advance(batch)

    monkeypatch.setattr(engine._rounds, "advance", failing)
    events = drain(engine)
    assert [e.request_id for e in events if isinstance(e, Failed)] == [ids[1]]
    assert texts(events) == {ids[0]: alone(asks[0]), ids[2]: alone(asks[2])}


def test_a_round_that_fails_behind_the_commit_is_not_repeated(monkeypatch):
    """The caches hold its tokens already: repeated, it would write others."""
    engine = golden("vanilla").engine
    asks = [request(PROMPT[k:], 20) for k in range(2)]
    ids = [engine.submit(ask) for ask in asks]
    extend, calls = engine.drafter.extend, []

    def failing(slots, *rest):
        calls.append(len(slots))
        if len(calls) == 4:  # two prompts, a round, and then
            raise BrokenPromptError("planted")
        extend(slots, *rest)

    monkeypatch.setattr(engine.drafter, "extend", failing)
    events = drain(engine)
    assert calls == [1, 1, 2, 2]
    assert {e.request_id for e in events if isinstance(e, Failed)} == set(ids)
    for request_id, ask in zip(ids, asks, strict=True):
        pieces = [p.token_id for e in events if isinstance(e, PrefillProgress | Round)
                  and e.request_id == request_id for p in e.pieces]  # fmt: skip
        assert pieces and tuple(pieces) == alone(ask)[: len(pieces)]


MACHINE_ERRORS = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    type("OutOfResources", (Exception,), {"__module__": "triton.runtime.errors"})("shared memory"),
)


@pytest.mark.parametrize("error", MACHINE_ERRORS, ids=lambda error: str(error)[:30])
@pytest.mark.parametrize("where", ["prefill", "verify"])
def test_an_error_of_the_machine_reaches_the_caller_and_ends_nobody(where, error, monkeypatch):
    """Whoever calls may go on with the same requests, once there is room: not a token is lost."""
    engine = golden("vanilla").engine
    asks = [request(PROMPT[k:], 20) for k in range(3)]
    ids = [engine.submit(ask) for ask in asks]
    whole, calls = getattr(engine.target, where), []

    def full(*given):
        calls.append(given)
        if len(calls) == 2:
            raise error
        return whole(*given)

    monkeypatch.setattr(engine.target, where, full)
    events, raised = [], []
    while engine.num_requests and len(raised) < 2:
        try:
            events += engine.step()
        except Exception as caught:
            raised.append(caught)
    assert raised == [error] and not any(isinstance(e, Failed) for e in events)
    assert texts(events) == {k: alone(ask) for k, ask in zip(ids, asks, strict=True)}
    for request_id, ask in zip(ids, asks, strict=True):
        told = [e for e in events if e.request_id == request_id and not isinstance(e, Finished)]
        assert tuple(p.token_id for e in told for p in e.pieces) == alone(ask)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 1.0, "seed": 3}])
@pytest.mark.parametrize("where", ["prefill", "verify"])
def test_logits_that_are_no_numbers_are_told_and_not_sampled(where, sampling, monkeypatch):
    """Of one request; the other goes on."""
    engine = golden("vanilla").engine
    asks = [request(PROMPT, 30, **sampling), request(PROMPT[3:], 30)]
    broken, other = (engine.submit(ask) for ask in asks)
    whole = getattr(engine.target, where)

    def poisoned(slots, *given):
        result = whole(slots, *given)
        active = engine._requests.get(broken)
        if active is not None and active.slot in (slots if where == "verify" else [slots]):
            ends = [0, *accumulate(map(len, given[0]))] if where == "verify" else [0, 1]
            place = slots.index(active.slot) if where == "verify" else 0
            result.logits[ends[place] : ends[place + 1], 5] = float("nan")
        return result

    monkeypatch.setattr(engine.target, where, poisoned)
    events = drain(engine)
    failed = {e.request_id: e.error for e in events if isinstance(e, Failed)}
    assert failed.keys() == {broken} and isinstance(failed[broken], BrokenLogitsError)
    assert texts(events)[other] == alone(asks[1])


def test_a_failure_is_raised_where_one_answer_is_asked_for(monkeypatch):
    session = golden("vanilla")
    break_prompt(session.engine, monkeypatch)
    with pytest.raises(BrokenPromptError):
        list(session.generate(BROKEN))
    with pytest.raises(BrokenPromptError):
        list(session.engine.run([request(), request(BROKEN)]))
    assert session.engine.num_requests == 0
    *_, last = session.generate(PROMPT, stop=request(max_tokens=20).stop)
    assert last.token_ids == alone(request(max_tokens=20))


def test_a_cancel_between_the_last_chunk_and_the_first_round_is_heeded():
    engine = golden("vanilla").engine
    request_id = engine.submit(request(max_tokens=200))
    (progress,) = engine.step()
    assert isinstance(progress, PrefillProgress) and progress.pieces
    thread = threading.Thread(target=engine.cancel, args=(request_id,))
    thread.start()
    thread.join()
    (finished,) = engine.step()
    assert (finished.reason, len(finished.token_ids)) == ("cancelled", 1)


def test_a_long_prompt_delays_the_rounds_of_others_by_one_chunk():
    engine = golden("vanilla", prefill_chunk=64).engine
    limit = engine.target.spec.context_limit
    others = engine._rounds.capacity - 1  # blocks of seven: eight requests share a pass
    for _ in range(others):
        engine.submit(request(max_tokens=min(40, limit - len(PROMPT))))
    running = set()
    while len(running) < others:
        running |= {
            e.request_id for e in engine.step() if isinstance(e, PrefillProgress) and e.pieces
        }
    prompt = LONG[: limit - 8]
    long_id = engine.submit(request(prompt, 4))
    num_chunks = -(-len(prompt) // 64)
    assert num_chunks >= 3
    for _ in range(num_chunks):
        before = {active.request_id for active in engine._in("running")}
        events = engine.step()
        (chunk,) = [e for e in events if isinstance(e, PrefillProgress)]
        assert chunk.request_id == long_id
        assert {e.request_id for e in events if isinstance(e, Round)} == before
    assert chunk.pieces


def test_a_short_prompt_does_not_wait_for_a_long_one():
    engine = golden("vanilla", prefill_chunk=16).engine
    limit = engine.target.spec.context_limit
    long_id = engine.submit(request(LONG[: limit - 8], 4))
    engine.step()
    short_id = engine.submit(request(PROMPT[:8], 4))
    events = [e for _ in range(3) for e in engine.step()]
    begun = [e.request_id for e in events if isinstance(e, PrefillProgress) and e.pieces]
    assert begun == [short_id] and engine.holds(long_id)
    assert (
        texts(drain(engine))[long_id]
        == decode(golden("vanilla", prefill_chunk=16).engine, [request(LONG[: limit - 8], 4)])[0]
    )


def test_requests_come_and_go_from_several_threads():
    engine = golden("vanilla").engine
    asks = [request(PROMPT[k % 5 :], 12) for k in range(24)]
    ids: dict[int, int] = {}
    cancelled: set[int] = set()

    def submit(first):
        for k in range(first, 24, 4):
            ids[k] = engine.submit(asks[k])
            if k % 6 == 5:
                cancelled.add(ids[k])
                engine.cancel(ids[k])

    threads = [threading.Thread(target=submit, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    events = []
    while any(thread.is_alive() for thread in threads) or engine.num_requests:
        events += engine.step()
    assert len(set(ids.values())) == 24
    done = texts(events)
    assert set(done) == set(ids.values())
    expected = [alone(request(PROMPT[k:], 12)) for k in range(5)]
    for k, request_id in ids.items():
        if request_id not in cancelled:
            assert done[request_id] == expected[k % 5]


def test_a_new_answer_ends_the_one_before():
    session = golden("vanilla")
    first = session.generate(PROMPT, stop=request(max_tokens=40).stop)
    next(first)
    *_, second = session.generate(PROMPT, stop=request(max_tokens=9).stop)
    assert second.token_ids == alone(request(max_tokens=9))
    assert list(first) == []
    session.generate(PROMPT)  # never read
    session.close()
    assert session.engine.num_requests == 0


@pytest.fixture
def getfixture(request):
    return request.getfixturevalue


def num_open(engine) -> list[int]:
    """Open slots and, where there are pages, pages in use: target's and drafter's, by the pools'
    own count."""
    target, drafter = engine.target.cache, engine.drafter
    if isinstance(target, PooledCache):
        pools = [target._pool, drafter._pool]
        return [pool._buffers[0].shape[1] - len(pool._free) for pool in pools]
    pools = [target.pool, drafter.cache.pool]
    slots = [pool.tables.shape[0] - len(pool._free_slots) for pool in pools]
    return [*slots, *(pool.num_pages - pool.num_free_pages for pool in pools)]


@pytest.mark.parametrize("leader", ["host", "device"])
@pytest.mark.parametrize("num_events", [400, pytest.param(10_000, marks=pytest.mark.long)])
def test_random_arrivals_cancels_and_failures_leak_nothing(
    num_events, leader, monkeypatch, getfixture
):
    """The engine checks its own count whenever it is idle; the pools are counted here."""
    if leader == "device":
        getfixture("paged")
    engine = golden("vanilla", max_requests=6).engine
    before = num_open(engine)
    break_prompt(engine, monkeypatch, BROKEN)
    draw = random.Random(0)
    live: list[int] = []
    ended = 0
    with torch.inference_mode():
        for _ in range(num_events):
            kind = draw.random()
            if kind < 0.45:
                prompt = BROKEN if draw.random() < 0.2 else PROMPT[draw.randrange(8) :]
                live.append(engine.submit(request(prompt, draw.randrange(1, 6))))
            elif kind < 0.6 and live:
                engine.cancel(draw.choice(live))
            elif kind < 0.65 and live:
                engine.discard([live.pop()])
            else:
                ended += sum(isinstance(e, Finished | Failed) for e in engine.step())
        ended += sum(isinstance(e, Finished | Failed) for e in drain(engine))
    assert ended > num_events / 4
    engine.close()
    assert num_open(engine) == before


@pytest.mark.usefixtures("paged")
def test_rounds_led_by_the_device_give_back_every_page(monkeypatch):
    engine = golden("vanilla").engine
    before = num_open(engine)
    break_prompt(engine, monkeypatch)
    draw = random.Random(1)
    for _ in range(60):
        live = [engine.submit(request(PROMPT[draw.randrange(8) :], 6)) for _ in range(3)]
        engine.submit(request(BROKEN))
        engine.step()
        engine.cancel(live[0])
        engine.discard(live[1:2])
        engine.step()
    drain(engine)
    engine.close()
    assert num_open(engine) == before
