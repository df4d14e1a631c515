"""Rounds that the device leads, in plain torch: the same events as the host's."""

import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dspark.checkpoints.deepspec import write_draft_vocabulary
from dspark.config import EngineConfig, RuntimeConfig, ScheduleConfig, StopConfig
from dspark.engine.loop import Engine
from dspark.engine.rounds import cuda_graph, device, waiting_taps
from dspark.engine.rounds.device import DeviceRounds
from dspark.engine.rounds.host import HostRounds
from dspark.engine.schedule.parking import Parking
from dspark.engine.schedule.policies import FullSchedule, SpsSchedule
from dspark.engine.session import Session, open_session
from dspark.errors import BrokenLogitsError, InputError, MemoryFullError
from dspark.events import Failed, Finished, PrefillProgress, Round
from dspark.hub import PairFiles
from dspark.kvcache import sizing
from dspark.progress import follow
from dspark_kernels import QuantizedWeight, probabilities
from tests.engine.paged import paged  # noqa: F401
from tests.engine.pairs import (
    GOLDEN,
    PROMPT,
    TABLE,
    decode,
    golden,
    open_pair,
    request,
    with_scheduler,
)
from tests.engine.test_distribution import FALSE_ALARM, asks_of, chi_square_p
from tests.engine.test_parking import Pattern

pytestmark = pytest.mark.usefixtures("paged")
PROMPTS = [PROMPT, PROMPT[:3], PROMPT * 7]


def led_by_host(session: Session) -> Engine:
    """The same pair, caches and operations; the host reads every draft."""
    old = session.engine
    engine = Engine(old.target, old.drafter, old.scheduler, old._codec, old.config)
    engine._rounds = HostRounds(old.target, old.drafter, old.scheduler, old.config)
    return engine


def led_by_device(session: Session) -> Engine:
    old = session.engine
    return Engine(old.target, old.drafter, old.scheduler, old._codec, old.config)


def events_of(engine: Engine, requests) -> list:
    """Everything but the times and how sure the head was to the last bit."""
    readback = []
    for event in engine.run(requests):
        if isinstance(event, Finished):
            stats = replace(event.stats, prefill_seconds=0.0, decode_seconds=0.0)
            event = replace(event, stats=stats, request_id=event.request_id)
        if isinstance(event, Round):
            event = replace(
                event, draft_seconds=0, verify_seconds=0, accept_seconds=0, seconds=0,
                confidence=None, pieces=plain(event.pieces), rejected=plain(event.rejected),
            )  # fmt: skip
        readback.append(event)
    return readback


def plain(pieces):
    return tuple(replace(piece, confidence=None) for piece in pieces)


def by_request(events) -> dict[int, list]:
    found: dict[int, list] = {}
    for event in events:
        found.setdefault(event.request_id, []).append(event)
    return found


@pytest.mark.parametrize("variant", ["vanilla", "gated", "rnn", "dflash", "dflash2", "domino"])
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
    for token in list(dict.fromkeys(written))[2:9:2]:
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
    whole = decode(session.engine, [request(max_tokens=60)])[0]
    events = []
    for event in session.generate(PROMPT, stop=StopConfig(max_tokens=60)):
        events.append(event)
        if isinstance(event, Round) and event.index == 3:
            session.cancel()
    assert events[-1].reason == "cancelled"
    assert sum(isinstance(event, Round) for event in events) == 4
    assert events[-1].token_ids == whole[: len(events[-1].token_ids)]
    assert decode(session.engine, [request(max_tokens=60)])[0] == whole


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


def test_a_round_is_asked_for_before_the_last_is_read(monkeypatch):
    calls = []
    for name in ("_launch", "_read"):
        spied = getattr(DeviceRounds, name)

        def call(self, *args, own=spied, name=name):
            calls.append(name)
            return own(self, *args)

        monkeypatch.setattr(DeviceRounds, name, call)
    engine = led_by_device(golden("vanilla"))
    calls.clear()
    done = events_of(engine, [request()])[-1]
    num_rounds = done.stats.rounds
    assert calls == ["_launch", *["_launch", "_read"] * num_rounds]  # one wasted at the end


@pytest.mark.parametrize("variant", ["dflash2", "domino"])
@pytest.mark.parametrize("weights", ["int8", "fp8"])
def test_smaller_weights_of_other_heads_change_drafts_only(variant, weights):
    folder = GOLDEN / variant
    files = PairFiles("test", folder / "target", folder / "draft")
    runtime = RuntimeConfig("cpu", "float32", weights)
    small = follow(open_session(files, runtime, EngineConfig(schedule=ScheduleConfig("full"))))
    events = events_of(small.engine, [request(max_tokens=40)])
    assert events[-1].token_ids == decode(golden(variant).engine, [request(max_tokens=40)])[0]
    assert any(e.accepted for e in events if isinstance(e, Round))


@pytest.mark.parametrize("weights", ["int8", "fp8"])
def test_smaller_draft_weights_change_drafts_only(weights):
    folder = GOLDEN / "vanilla"
    files = PairFiles("test", folder / "target", folder / "draft")
    config = EngineConfig(schedule=ScheduleConfig("full"))
    runtime = RuntimeConfig("cpu", "float32", weights)
    small = follow(open_session(files, runtime, config))
    codes = [small.engine.drafter.output_weight, small.engine.drafter.decoder.layers[0].qkv.weight]
    assert all(isinstance(each, QuantizedWeight) and each.kind == weights for each in codes)
    w2 = small.engine.drafter._sequential.w2  # which every step of a block reads
    assert isinstance(w2, QuantizedWeight) == (weights == "int8")
    events = events_of(small.engine, [request(max_tokens=60)])
    assert events[-1].token_ids == decode(golden("vanilla").engine, [request(max_tokens=60)])[0]
    assert any(e.accepted for e in events if isinstance(e, Round))


def test_smaller_draft_weights_are_refused_where_the_host_leads(monkeypatch):
    monkeypatch.undo()
    folder = GOLDEN / "vanilla"
    files = PairFiles("test", folder / "target", folder / "draft")
    with pytest.raises(InputError, match="int8"):
        list(open_session(files, RuntimeConfig("cpu", "float32", "int8")))


def test_head_and_target_share_embedding_and_output_head():
    engine = golden("vanilla").engine
    target, drafter = engine.target, engine.drafter
    for own, shared in (
        (drafter._embedding, target.embedding()),
        (drafter.output_weight, target.output_head().weight),
    ):
        assert own.data_ptr() == shared.data_ptr()


def test_a_smaller_draft_vocabulary_grows_by_what_a_request_holds(tmp_path):
    ids = torch.arange(0, 65, 2)
    shutil.copytree(GOLDEN / "vanilla" / "draft", tmp_path / "draft")
    write_draft_vocabulary(tmp_path / "draft", ids)
    session = open_pair(GOLDEN / "vanilla" / "target", tmp_path / "draft")
    asks = [request(max_tokens=60), request(PROMPT[:4], 30)]
    events = events_of(session.engine, asks)
    for readback in by_request(events).values():
        rounds = [event for event in readback if isinstance(event, Round)]
        prompt = asks[0 if readback[0].total == len(PROMPT) else 1].prompt_ids
        drafted = {token for r in rounds for token in r.draft}
        assert drafted <= {*ids.tolist(), *prompt, *readback[-1].token_ids}
        assert drafted - set(ids.tolist()) and any(r.accepted for r in rounds)
    whole = golden("vanilla").engine
    assert by_request(events)[0][-1].token_ids == decode(whole, [asks[0]])[0]


def test_what_does_not_fit_waits_or_is_refused(monkeypatch):
    monkeypatch.setattr(sizing, "usable_bytes", lambda device: 3_000_000)
    session = golden("vanilla")
    num_pages = session.engine._rounds._cache.pool.num_pages
    assert 3 < num_pages < 68
    long = [request([1 + i % 60 for i in range(200)], 60, plain=i % 2 == 1) for i in range(12)]
    ours = events_of(session.engine, long)
    alone = decode(golden("vanilla").engine, [long[0]])[0]
    assert [e.token_ids for e in ours if isinstance(e, Finished)] == [alone] * 12
    monkeypatch.setattr(sizing, "usable_bytes", lambda device: 1_000_000)
    with pytest.raises(MemoryFullError, match="tokens"):
        golden("vanilla").engine.submit(request(PROMPT, 500))
    monkeypatch.setattr(sizing, "usable_bytes", lambda device: 1000)
    with pytest.raises(MemoryFullError, match="keys and values"):
        golden("vanilla")


def test_warming_up_is_told_and_changes_nothing():
    session = golden("vanilla")
    readback = list(session.engine.warm_up())
    assert [event.done for event in readback] == list(range(len(readback))) and readback
    captured = {*session.engine._rounds._calls}
    ask = request()
    assert events_of(session.engine, [ask])[-1].token_ids == decode(led_by_host(session), [ask])[0]
    assert {*session.engine._rounds._calls} == captured


FILTERED = {"top_k": 6, "top_p": 0.9}


COUNTED_ALWAYS = [("vanilla", {}, "rejection"), ("vanilla", FILTERED, "coupling")]
COUNTED_SOMETIMES = [
    (variant, options, rule)
    for variant in ("vanilla", "dflash2", "domino")
    for options in ({}, FILTERED)
    for rule in ("rejection", "coupling")
    if (variant, options, rule) not in COUNTED_ALWAYS
]


@pytest.mark.parametrize(
    ("variant", "options", "rule"),
    COUNTED_ALWAYS
    + [pytest.param(*each, marks=pytest.mark.counting) for each in COUNTED_SOMETIMES],
)
def test_sampled_tokens_follow_the_target(variant, options, rule):
    """A correct engine fails one in a million such tests."""
    session = golden(variant, entropy=0)
    assert isinstance(session.engine._rounds, DeviceRounds)
    target = session.engine.target
    target.spec = replace(target.spec, max_rows=512)  # many at once, to be quick
    engine = with_scheduler(session, FullSchedule())
    asks = asks_of(rule, PROMPT, 2, 700, temperature=0.9, **options)
    written = decode(engine, asks)
    start = session.next_logits(PROMPT)
    first = probabilities(start, 0.9, options.get("top_k", 0), options.get("top_p", 1.0))
    firsts = Counter(one for one, _ in written)
    assert chi_square_p(firsts, first.tolist()) > FALSE_ALARM
    followed, times = firsts.most_common(1)[0]
    after = session.next_logits((*PROMPT, followed))
    second = probabilities(after, 0.9, options.get("top_k", 0), options.get("top_p", 1.0))
    followers = Counter(other for one, other in written if one == followed)
    assert times > 50
    assert chi_square_p(followers, second.tolist()) > FALSE_ALARM
    flatter = probabilities(after, 2.5)
    assert chi_square_p(followers, flatter.tolist()) < FALSE_ALARM  # the test can fail


def test_engines_share_a_target_and_its_memory():
    session = golden("vanilla")
    asks = [request(PROMPT[: 3 + i], 6 + i % 5, plain=True) for i in range(20)]
    plain = Engine(session.engine.target, None, FullSchedule())
    table = session.engine.target.cache.pool.tables.data_ptr()
    assert plain._rounds.capacity > session.engine._rounds.capacity
    assert decode(plain, asks) == decode(session.engine, asks)
    assert session.engine.target.cache.pool.tables.data_ptr() == table
    few = with_scheduler(session, FullSchedule())
    assert decode(few, [replace(ask, plain=False) for ask in asks]) == decode(plain, asks)


def test_a_head_joins_a_target_that_taps_more():
    folder, taps = GOLDEN / "vanilla", (2, 0, 3, 1)
    files, config = PairFiles("test", folder / "target", None), EngineConfig()
    runtime = RuntimeConfig("cpu", "float32")
    alone = follow(open_session(files, runtime, config, tap_layers=taps))
    assert alone.engine._rounds._cache.pool.num_free_pages
    joined = alone.with_schedule(ScheduleConfig("full")).with_head("test", folder / "draft", taps)
    assert isinstance(joined.engine._rounds, DeviceRounds)
    ours, own = (events_of(s.engine, [request()]) for s in (joined, golden("vanilla")))
    assert ours == own


@pytest.mark.parametrize("temperature", [1e-5, 1e-12, 1e-19, 1e-40])
def test_tiny_temperatures_write_what_temperature_0_writes(temperature):
    engine = golden("vanilla").engine
    wanted = decode(engine, [request(max_tokens=24)])[0]
    for plain in (True, False):
        asked = request(max_tokens=24, plain=plain, temperature=temperature, seed=3)
        assert decode(engine, [asked])[0] == wanted


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 1.0, "seed": 3}])
def test_logits_that_are_no_numbers_are_told_and_not_sampled(sampling, monkeypatch):
    """Of one request; the other goes on."""
    engine = golden("vanilla").engine
    wanted = decode(engine, [request(PROMPT[3:], 30)])[0]
    broken, other = (engine.submit(r) for r in (request(**sampling), request(PROMPT[3:], 30)))
    whole = engine.target.run

    def poisoned(token_ids, rows, drafts=None):
        result = whole(token_ids, rows, drafts)
        active = engine._requests.get(broken)
        if active is not None:
            lanes = (rows._rows.slots == active.slot.index).nonzero().flatten().tolist()
            for lane in lanes:
                result.logits.unflatten(0, (len(rows._rows.slots), -1))[lane, :, 5] = float("nan")
        return result

    monkeypatch.setattr(engine.target, "run", poisoned)
    events = []
    while engine.num_requests:
        events += engine.step()
    failed = {e.request_id: e.error for e in events if isinstance(e, Failed)}
    assert failed.keys() == {broken} and isinstance(failed[broken], BrokenLogitsError)
    ends = {e.request_id: e.token_ids for e in events if isinstance(e, Finished)}
    assert ends == {other: wanted}


def test_what_the_host_reads_is_copied_into_memory_that_is_taken_once(monkeypatch):
    """As on a card: replayed, and read from page-locked memory, two buffers a shape of round."""
    made = []

    def pinned(like):
        made.append(torch.empty_like(like))
        return made[-1]

    monkeypatch.setattr(cuda_graph.GraphedCall, "__call__", lambda self: self._function())
    asks = [request(max_tokens=60), request(PROMPT[:5], 50)]
    wanted = [decode(golden("vanilla").engine, [ask]) for ask in asks]
    monkeypatch.setattr(device, "graph_pool", lambda device: SimpleNamespace(failure=None))
    monkeypatch.setattr(device, "pinned_like", pinned)
    engine = golden("vanilla").engine
    assert [decode(engine, [ask]) for ask in asks] == wanted
    assert len(made) == 2 * len(engine._rounds._calls) < 20


# -- parking --------------------------------------------------------------------------------------


def parked_engine(session: Session, pattern: Pattern) -> Engine:
    old = session.engine
    parts = (old.target, old.drafter, old.scheduler, old._codec, old.config)
    return Engine(*parts, parking=pattern)


@pytest.mark.parametrize("variant", ["vanilla", "gated", "rnn", "dflash"])
def test_parked_rounds_are_the_hosts(variant):
    """Also what is drafted after them: the drafter has taken in all that was committed."""
    session = golden(variant)
    ours = parked_engine(session, Pattern(7, 2))
    host = led_by_host(session)
    host._rounds._parking = Pattern(7, 2)
    events = events_of(ours, [request()])
    assert events == events_of(host, [request()])
    rounds = [e for e in events if isinstance(e, Round)]
    assert {e.is_parked for e in rounds} == {True, False}
    assert all(e.draft == () for e in rounds if e.is_parked)


def test_parking_changes_no_token_of_requests_that_come_and_go(monkeypatch):
    monkeypatch.setattr(waiting_taps, "MOST_ROUNDS", 3)
    session = golden("vanilla", max_requests=3)
    asks = [request(p, 20 + 9 * i) for i, p in enumerate(PROMPTS)]
    asks += [request(PROMPT[:9], 30, plain=True), request(PROMPT[:5], 12)]
    expected = decode(session.engine, [replace(ask, plain=True) for ask in asks])
    for pattern in (Pattern(5, 2), Pattern(10**6, 1)):
        assert decode(parked_engine(session, pattern), asks) == expected


def test_a_parked_round_leaves_the_drafter_alone(monkeypatch):
    session = golden("vanilla")
    engine, calls = parked_engine(session, Pattern(10**6, 1)), []
    append = engine.drafter.append

    def appending(taps, rows):
        calls.append(len(taps))
        append(taps, rows)

    monkeypatch.setattr(engine.drafter, "append", appending)
    (text,) = decode(engine, [request(max_tokens=40)])
    sizes = [size for size in calls if size != len(PROMPT)]
    assert len(sizes) < 10 and sum(sizes) >= 39  # in few calls, once the text is over
    longer = request((*PROMPT, *text, 5, 6), 30)
    engine._rounds._parking = None
    ours, fresh = (
        [e.draft for e in each.run([longer]) if isinstance(e, Round)]
        for each in (engine, led_by_device(session))
    )
    assert ours == fresh


def test_the_ledger_of_device_rounds_parks_what_does_not_pay(monkeypatch):
    session, parking = golden("vanilla"), Parking(block_size=6)
    record = parking.record

    def recording(seconds, blocks, *, has_drafts, **_):
        record(50.0 if has_drafts else 1.0, blocks, has_drafts=has_drafts)

    monkeypatch.setattr(parking, "record", recording)
    events = list(parked_engine(session, parking).run([request(max_tokens=60)]))
    rounds = [e for e in events if isinstance(e, Round)]
    assert sum(not e.is_parked for e in rounds) <= 3  # two are launched ahead
    (finished,) = (e for e in events if isinstance(e, Finished))
    assert finished.stats.is_parked and finished.stats.draft_cost > 10
