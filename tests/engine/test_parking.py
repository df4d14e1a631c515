"""Drafting stops where it loses, is tried again at a bounded cost, and changes no token."""

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import pytest

from dspark.engine import draft_backlog, loop
from dspark.engine.loop import Engine
from dspark.engine.request_caches import LEAST_SHARED
from dspark.engine.rounds import host
from dspark.engine.schedule.acceptance import Acceptance
from dspark.engine.schedule.parking import Parking
from dspark.engine.schedule.policies import FullSchedule, SpsSchedule
from dspark.events import Finished, PrefillProgress, Round
from dspark.serve.metrics import Metrics
from dspark_cli.output.answer import stats_line
from tests.engine.machine import (
    BLOCK,
    CARD,
    CHEAP_ROWS,
    DEMO,
    EVERY_ROW_AS_DEAR,
    Decoded,
    Machine,
    parking_of,
)
from tests.engine.pairs import TABLE, decode, golden, request


class Rates(NamedTuple):
    """Tokens per second: as parked, with the best length for each text, plain, in whole blocks."""

    parking: float
    best: float
    plain: float
    whole: float


SEEDED = {"temperature": 1.0, "seed": 3}
COUNTS = [1, 2, 4, 8, 16]
LOSING = {
    "demo": Machine(DEMO, 1.7, 0.3),
    "every row as dear": Machine(EVERY_ROW_AS_DEAR, 1.7, 0.7),
    "dear drafts": Machine(CARD, 8.0, 0.6),
}
WINNING = {
    "demo": Machine(DEMO, 1.7, 0.75),
    "cheap rows": Machine(CHEAP_ROWS, 1.2, 0.7),
    "card": Machine(CARD, 1.0, 0.75),
}


def from_cold(machine: Machine, requests: int, tokens: int, *, is_scheduled: bool) -> Decoded:
    """On a table as it is measured at the start, nothing else being known."""
    table = machine.table()
    schedule = SpsSchedule(table) if is_scheduled else FullSchedule()
    return machine.run(parking_of(table), schedule, requests, tokens, random.Random(requests))


@pytest.mark.parametrize("is_scheduled", [True, False], ids=["scheduler", "whole blocks"])
@pytest.mark.parametrize("machine", LOSING.values(), ids=LOSING)
def test_drafts_that_never_pay_cost_next_to_nothing(machine, is_scheduled):
    """2,000 tokens of all requests together, of which the noise of 125 rounds is half a percent."""
    for requests in COUNTS:
        assert machine.best_rate(requests) == machine.plain_rate(requests)
        decoded = from_cold(machine, requests, 2000, is_scheduled=is_scheduled)
        assert decoded.rate > 0.97 * machine.plain_rate(requests), requests


@pytest.mark.parametrize("machine", WINNING.values(), ids=WINNING)
def test_the_scheduler_is_as_good_as_the_best_fixed_length(machine):
    for requests in COUNTS:
        decoded = from_cold(machine, requests, 2000, is_scheduled=True)
        assert decoded.rate > 0.97 * machine.best_rate(requests), requests


@pytest.mark.parametrize("requests", COUNTS)
def test_without_a_table_an_attempt_tells(requests):
    """There is none of drafters that cost nothing to run."""
    losing, winning = Machine(DEMO, 0.5, 0.1), Machine(CARD, 0.5, 0.7)
    plain, other = (
        each.run(Parking(block_size=BLOCK), FullSchedule(), requests, 2000 * requests, dice())
        for each in (losing, winning)
    )
    assert plain.rate > 0.97 * losing.plain_rate(requests)
    assert other.rate > 0.95 * winning.fixed_rate(requests, BLOCK)


def test_a_table_that_promises_too_much_is_not_believed_for_long():
    """It says that rows are free."""
    machine = Machine(EVERY_ROW_AS_DEAR, 1.7, 0.6, outliers=0.02)
    for requests in (1, 4, 16):
        parking = parking_of(Machine(CARD, 1.7, 0.6).table())
        decoded = machine.run(parking, FullSchedule(), requests, 2000 * requests, dice())
        assert parking.is_parked(requests)
        assert decoded.rate > 0.97 * machine.plain_rate(requests)


def test_a_gain_is_kept_beside_other_programs():
    machine = replace(WINNING["demo"], outliers=0.02)
    table = machine.table()
    for requests in (1, 2):
        decoded = machine.run(parking_of(table), SpsSchedule(table), requests, 3000, dice())
        assert decoded.drafted > 0.9
        assert decoded.rate > 0.95 * machine.best_rate(requests)


AROUND = {
    "around rounds": Machine(CHEAP_ROWS, 0.3, 0.25, around=(0.2, 2.0)),
    "behind drafts": Machine(CHEAP_ROWS, 1.2, 0.25, behind=0.4),
}


@pytest.mark.parametrize("machine", AROUND.values(), ids=AROUND)
def test_a_loss_that_no_table_knows_is_seen(machine):
    for requests in (1, 2, 4):
        assert machine.best_rate(requests) == machine.plain_rate(requests)
        decoded = from_cold(machine, requests, 2000, is_scheduled=True)
        assert decoded.rate > 0.97 * machine.plain_rate(requests), requests


def texts(machines: Sequence[Machine], requests: int, tokens: int, count: int) -> Rates:
    """Texts of machines in an order that chance makes, from cold, on one table."""
    table, chance = machines[0].table(), random.Random(requests)
    parking, schedule = parking_of(table), SpsSchedule(table)
    times = [0.0] * 4
    for _ in range(count):
        machine = chance.choice(machines)
        rates = machine.best_rate(requests), machine.plain_rate(requests)
        whole = machine.fixed_rate(requests, BLOCK)
        took = machine.text(parking, schedule, requests, tokens, chance)
        spent = (took, *(requests * tokens / rate for rate in (*rates, whole)))
        times = [so_far + more for so_far, more in zip(times, spent, strict=True)]
    return Rates(*(count * requests * tokens / seconds for seconds in times))


@pytest.mark.parametrize("kind", ["demo", "losing", "cheap rows"])
def test_short_texts_lose_nothing_by_being_many(kind):
    """64 tokens each, of which an attempt could take a third."""
    machine = {**WINNING, "losing": LOSING["demo"]}[kind]
    for requests in (1, 2):
        ours = texts([machine], requests, 64, 40)
        assert ours.parking > 0.97 * ours.best, requests


@pytest.mark.parametrize("tokens", [64, 500])
def test_texts_that_differ_are_told_apart(tokens):
    """Better than either policy that does not look at the text."""
    for requests in (1, 2):
        ours = texts([LOSING["demo"], WINNING["demo"]], requests, tokens, 2000 // tokens + 8)
        assert ours.parking > max(ours.plain, ours.whole), requests


def dice() -> random.Random:
    return random.Random(0)


# plain rounds take 1
CASE = ((1, 1.0), (2, 1.0))
PAYS, LOSES = Machine(CASE, 0.4, 0.6), Machine(CASE, 2.5, 0.4)


def run(machine: Machine, parking: Parking, tokens: int, requests: int = 1) -> Decoded:
    return machine.run(parking, FullSchedule(), requests, tokens, dice())


def test_a_change_is_noticed_both_ways():
    parking = Parking(block_size=BLOCK)
    run(LOSES, parking, 3000)
    assert parking.is_parked(1)
    parking.begin_text()
    run(PAYS, parking, 2000)
    assert not parking.is_parked(1)
    assert run(PAYS, parking, 2000).drafted > 0.95
    run(LOSES, parking, 200)
    assert parking.is_parked(1)


def test_attempts_that_fail_grow_rarer():
    parking = Parking(block_size=BLOCK)
    shares = [run(LOSES, parking, 10_000).drafted for _ in range(3)]
    assert shares[0] > shares[2] > 0


def test_new_texts_bring_no_attempt_before_its_cost_allows():
    """However many requests come."""
    parking, drafted = Parking(block_size=BLOCK), 0.0
    for _ in range(200):
        parking.begin_text()
        drafted += run(LOSES, parking, 50).drafted * 50
    assert drafted < 0.02 * 200 * 50


def test_a_busy_minute_that_ends_is_noticed():
    """In it drafts paid; plain rounds are twice as fast since, those with drafts a quarter."""
    parking = Parking(block_size=BLOCK)
    busy, quiet = Machine(((1, 2.0), (2, 2.0)), 0.4, 0.55), Machine(CASE, 0.8, 0.3)
    run(busy, parking, 600)
    assert not parking.is_parked(1)
    run(quiet, parking, 200)
    assert parking.is_parked(1)


def test_numbers_of_requests_are_judged_apart():
    parking = Parking(block_size=BLOCK)
    run(PAYS, parking, 500)
    run(LOSES, parking, 4000, requests=8)
    assert not parking.is_parked(1) and parking.is_parked(8) and parking.is_parked(7)


def test_what_was_learned_is_kept(tmp_path):
    path = tmp_path / "sps.parking"
    parking = Parking(path, block_size=BLOCK)
    run(LOSES, parking, 200)
    assert parking.is_parked(1)
    parking.save()
    following = Parking(path, block_size=BLOCK)
    assert following.is_parked(1) and following.figures(1) == parking.figures(1)
    assert run(LOSES, following, 100).drafted == 0
    for broken in ("", "[]", "{", '{"acceptance": 1}', '{"ledgers": {"1": 2}, "acceptance": {}}'):
        path.write_text(broken)
        assert not Parking(path, block_size=BLOCK).is_parked(1)


def test_a_number_that_cannot_pay_is_not_tried_first():
    """One request pays; the table says that eight cannot."""
    machine = WINNING["cheap rows"]
    parking = parking_of(machine.table())
    assert parking.wants_drafts(1)
    assert not parking.wants_drafts(8) and parking.is_parked(8)
    cost, tokens = parking.figures(8)
    assert 1.0 < tokens < cost


def test_acceptance_is_of_verified_drafts_behind_accepted_ones():
    seen = Acceptance(3)
    for _ in range(2000):
        seen.record(2, 1)
        seen.record(2, 2)
    first, second, third = seen.survival
    assert first == pytest.approx(1.0, abs=0.01) and second == pytest.approx(0.5, abs=0.01)
    assert third == pytest.approx(second * 0.75)  # never verified: as guessed at first
    seen.record(0, 0)
    assert seen.survival == [first, second, third]


# -- in the engine --------------------------------------------------------------------------------


class Pattern(Parking):
    """Parked for some rounds, then not for some, whatever the times are."""

    def __init__(self, parked: int, drafting: int) -> None:
        super().__init__()
        self._parked, self._period, self._round = parked, parked + drafting, 0

    def wants_drafts(self, num_requests: int) -> bool:
        self._round += 1
        return (self._round - 1) % self._period >= self._parked

    def is_parked(self, num_requests: int) -> bool:
        return self._round % self._period < self._parked

    def figures(self, num_requests: int) -> tuple[float, float]:
        return 3.0, 2.0


def engine_with(variant: str, parking: Parking | None) -> Engine:
    old = golden(variant).engine
    schedule = SpsSchedule(replace(TABLE, verify_seconds=(1.0, 1.001, 1.01)))
    return Engine(old.target, old.drafter, schedule, old._codec, old.config, parking=parking)


@pytest.mark.parametrize("variant", ["vanilla", "rnn", "dflash", "eagle3"])
@pytest.mark.parametrize("sampling", [{}, SEEDED], ids=["greedy", "seeded"])
def test_parking_changes_no_token(variant, sampling):
    asks = [request(range(3, 3 + n), 30, **sampling) for n in (5, 12, 9)]
    plain = [replace(ask, plain=True) for ask in asks]
    expected = decode(golden(variant).engine, plain)
    for pattern in (Pattern(3, 2), Pattern(1, 1)):
        assert decode(engine_with(variant, pattern), asks) == expected


@pytest.mark.parametrize("variant", ["vanilla", "rnn", "eagle3"])
def test_a_drafter_drafts_after_parking_as_if_it_had_drafted_all_along(variant):
    """The block after an anchor depends on the text before it alone, so that nothing is missing
    from its cache."""
    everywhere = engine_with(variant, None)
    everywhere.scheduler = everywhere._rounds.scheduler = NothingVerified()
    known = [e.draft for e in rounds(everywhere)]
    told = rounds(engine_with(variant, Pattern(5, 1)))
    anchors = accumulate((e.accepted + 1 for e in told), initial=0)
    drafted = [(e.draft, known[at]) for e, at in zip(told, anchors, strict=False) if e.draft]
    assert len(drafted) >= 3
    assert all(one == other for one, other in drafted)


class NothingVerified(FullSchedule):
    """So that a block is drafted after every token."""

    def admit(self, confidences, limits, depth=0):
        return [0] * len(limits)


def rounds(engine: Engine) -> list[Round]:
    return [e for e in engine.run([request(max_tokens=40)]) if isinstance(e, Round)]


def test_a_parked_round_is_told_and_costs_no_acceptance():
    engine = engine_with("vanilla", Pattern(2, 1))
    events = list(engine.run([request(max_tokens=40)]))
    told = [e for e in events if isinstance(e, Round)]
    (finished,) = (e for e in events if isinstance(e, Finished))
    parked = [e for e in told if e.is_parked]
    assert parked and all(e.draft == () and e.accepted == 0 for e in parked)
    assert finished.stats.parked == len(parked) < finished.stats.rounds
    assert {(e.draft_cost, e.draft_tokens) for e in parked} == {(3.0, 2.0)}
    said = "drafts: a round with drafts would take as long as 3.0 tokens without, and give 2.0"
    assert said in stats_line(finished.stats)
    metrics = Metrics()
    for event in events:
        metrics.observe(event)
    assert "dspark_draft_cost 3.0" in metrics.text(0, 0).decode()
    drafted = [e for e in told if not e.is_parked]
    assert finished.stats.tau == pytest.approx(sum(e.accepted + 1 for e in drafted) / len(drafted))


def test_the_next_turn_continues_a_parked_one():
    """What the drafter's kept cache lacks waits beside it."""
    engine = engine_with("vanilla", Pattern(10**6, 1))
    (first,) = decode(engine, [request(max_tokens=20)])
    longer = request((*request().prompt_ids, *first, 5, 6), 20)
    engine._rounds._parking = None
    (second,) = decode(engine, [longer])
    assert [second] == decode(golden("vanilla").engine, [replace(longer, plain=True)])
    fresh = engine_with("vanilla", None)
    assert drafts(fresh, longer) == drafts(engine, longer)


def test_a_prompt_that_waits_is_shared_with_the_drafter_too():
    """The second request begins in the caches of the first, whose drafter has nothing yet."""
    engine = engine_with("vanilla", Pattern(10**6, 1))
    shared = range(3, 8 + 2 * LEAST_SHARED)  # the last page is copied at once
    engine.submit(request(shared, 60))
    for _ in range(3):
        list(engine.step())
    (first,) = engine._requests.values()
    assert first.backlog.ids[: len(shared)] == list(shared)
    second = request([*shared, 5, 6], 20)
    events = engine.run([second])
    assert isinstance(next(events), PrefillProgress)
    engine._rounds._parking = None
    told = [e for e in events if e.request_id != first.request_id]
    assert told[-1].stats.cached_tokens == len(shared)
    alone = drafts(engine_with("vanilla", None), second)
    assert [e.draft for e in told if isinstance(e, Round)] == alone


def test_a_parked_round_leaves_the_drafter_alone(monkeypatch):
    engine = engine_with("vanilla", Pattern(10**6, 1))
    calls = []
    for name in ("extend", "propose"):
        monkeypatch.setattr(engine.drafter, name, lambda *_, name=name: calls.append(name))
    decode(engine, [request(range(3, 3 + n), 30) for n in (5, 12, 9)])
    assert not calls  # not even for the prompts


def test_a_round_costs_what_the_step_does_around_it(monkeypatch):
    """By a clock that only moves where this test says: 5 s for the events of a round, 100 s for a
    prompt and for the end of a text, which no kind of round can help."""
    clock, recorded = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def slowed(owner, name, seconds):
        original = getattr(owner, name)

        def slow(*parts, **more):
            clock[0] += seconds
            return original(*parts, **more)

        monkeypatch.setattr(owner, name, slow)

    class Recording(Pattern):
        def record(self, seconds, blocks, *, has_drafts, caught_up=0.0):
            recorded.append((has_drafts, seconds, caught_up))

    engine = engine_with("vanilla", Recording(3, 2))
    slowed(loop, "round_event", 5.0)
    slowed(engine.target, "prefill", 100.0)
    slowed(engine._caches, "keep", 100.0)
    slowed(engine.target, "verify", 2.0)
    slowed(engine.drafter, "propose", 3.0)
    slowed(engine.drafter, "extend", 0.5)
    told = [e for e in engine.run([request(), request(range(4, 20))]) if isinstance(e, Round)]
    together = [each for each in recorded if each[1] > 11]
    assert {drafts: seconds for drafts, seconds, _ in together} == {False: 12.0, True: 15.5}
    assert {caught_up for drafts, _, caught_up in recorded if drafts} == {0.0, 0.5}
    assert {e.seconds for e in told if e.is_parked} == {2.0}


@pytest.mark.parametrize("most", [0, 5000])
def test_what_waits_for_the_drafter_is_bounded(monkeypatch, most):
    monkeypatch.setattr(host, "MOST_BYTES", most)
    monkeypatch.setattr(host, "MOST_KEPT_BYTES", 0)
    asks = [request(range(3, 3 + n), 30) for n in (5, 12, 9)]
    engine = engine_with("vanilla", Pattern(25, 5))
    held, extend = [], engine.drafter.extend

    def extending(slots, ids, taps):
        held.append(sum(each.nbytes for each in taps))
        extend(slots, ids, taps)

    monkeypatch.setattr(engine.drafter, "extend", extending)
    assert decode(engine, asks) == decode(
        golden("vanilla").engine, [replace(ask, plain=True) for ask in asks]
    )
    row = 4 * engine.target.spec.hidden_size * len(engine.target.tap_layers)
    assert max(held[3:]) <= most + 3 * row * (1 + engine.drafter.block_size)


def test_memory_of_what_waits_is_handed_on(monkeypatch):
    """From text to text, in blocks of three rows, so that texts end within them."""
    asks = [request(range(3, 3 + n), 30) for n in (5, 12, 9)]
    expected = rounds_of(engine_with("vanilla", Pattern(22, 3)), asks)
    engine = engine_with("vanilla", Pattern(22, 3))
    width = engine.target.spec.hidden_size * len(engine.target.tap_layers)
    monkeypatch.setattr(draft_backlog, "BLOCK_BYTES", 3 * 4 * width)
    held, take = [], draft_backlog.TapBlocks.take

    def taking(memory, like):
        held.append(take(memory, like))
        return held[-1]

    monkeypatch.setattr(draft_backlog.TapBlocks, "take", taking)
    assert rounds_of(engine, asks) == expected
    for _ in range(4):
        engine.forget_texts()
        decode(engine, asks)
    most = 3 * (30 // 3 + 1)
    assert len({block.address for block in held}) <= most < len(held) / 2


def rounds_of(engine: Engine, asks) -> list[tuple[int, tuple[int, ...], int]]:
    told = [e for e in engine.run(asks) if isinstance(e, Round)]
    return [(e.request_id, e.draft, e.accepted) for e in told]


def drafts(engine: Engine, ask) -> list[tuple[int, ...]]:
    return [e.draft for e in engine.run([ask]) if isinstance(e, Round)]
