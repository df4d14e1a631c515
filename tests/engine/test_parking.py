"""Drafting stops where it loses, is tried again at a bounded cost, and changes no token."""

import random
from dataclasses import dataclass, replace
from itertools import accumulate

import pytest

from dspark.engine.loop import Engine
from dspark.engine.schedule.parking import Parking
from dspark.engine.schedule.policies import FullSchedule, SpsSchedule
from dspark.events import Finished, Round
from tests.engine.pairs import TABLE, decode, golden, request

SEEDED = {"temperature": 1.0, "seed": 3}


@dataclass
class Machine:
    """Plain rounds take 1 with noise, rounds with drafts `cost`; a draft is accepted with
    probability `likely`, given those before it, as far as five."""

    cost: float
    likely: float
    num_requests: int = 1
    noise: float = 0.05

    def run(self, parking: Parking, tokens: int, dice: random.Random) -> tuple[float, float]:
        """-> seconds, and the share of tokens from rounds with drafts."""
        seconds, written, drafted = 0.0, 0, 0
        while written < tokens * self.num_requests:
            wants = parking.wants_drafts(self.num_requests)
            took = (self.cost if wants else 1.0) * dice.lognormvariate(0.0, self.noise)
            took *= 1 + 2 * (dice.random() < 0.02)  # another program
            gained = sum(self.gained(dice) if wants else 1 for _ in range(self.num_requests))
            parking.record(self.num_requests, took, gained, has_drafts=wants)
            seconds, written, drafted = seconds + took, written + gained, drafted + wants * gained
        return seconds, drafted / written

    def gained(self, dice: random.Random) -> int:
        accepted = 0
        while accepted < 5 and dice.random() < self.likely:
            accepted += 1
        return accepted + 1

    def plain_seconds(self, tokens: int) -> float:
        return tokens * 1.04  # other programs included


@pytest.mark.parametrize("num_requests", [1, 4, 16])
@pytest.mark.parametrize("cost", [2.05, 2.3, 3.0, 6.0])
def test_a_loss_is_bounded(cost, num_requests):
    """τ is 2, so every one of these loses."""
    losses = []
    for seed in range(5):
        machine = Machine(cost, 0.5, num_requests)
        seconds, _ = machine.run(Parking(), 6000, random.Random(seed))
        losses.append(seconds / machine.plain_seconds(6000) - 1)
    assert sum(losses) / len(losses) < 0.03


@pytest.mark.parametrize("num_requests", [1, 4, 16])
@pytest.mark.parametrize("cost", [1.2, 1.6])
def test_a_gain_is_kept(cost, num_requests):
    for seed in range(5):
        machine = Machine(cost, 0.5, num_requests)
        seconds, drafted = machine.run(Parking(), 6000, random.Random(seed))
        assert drafted > 0.9
        assert machine.plain_seconds(6000) / seconds > 0.95 * 1.97 / cost


def test_a_change_is_noticed_both_ways():
    parking, dice = Parking(), random.Random(0)
    losing, winning = Machine(2.4, 0.5), Machine(1.4, 0.7)
    losing.run(parking, 3000, dice)
    assert parking.is_parked(1)
    parking.begin_text()
    winning.run(parking, 1000, dice)
    assert not parking.is_parked(1)
    _, drafted = winning.run(parking, 2000, dice)
    assert drafted > 0.95
    losing.run(parking, 200, dice)
    assert parking.is_parked(1)


def test_attempts_that_fail_grow_rarer():
    parking, dice, machine = Parking(), random.Random(0), Machine(3.0, 0.5)
    shares = [machine.run(parking, 5000, dice)[1] for _ in range(3)]
    assert shares[0] > shares[2] > 0


def test_numbers_of_requests_are_judged_apart():
    parking, dice = Parking(), random.Random(0)
    Machine(1.4, 0.5, 1).run(parking, 500, dice)
    Machine(3.0, 0.5, 8).run(parking, 500, dice)
    assert not parking.is_parked(1) and parking.is_parked(8) and parking.is_parked(7)


def test_what_was_learned_is_kept(tmp_path):
    path, dice = tmp_path / "sps.parking", random.Random(0)
    parking, machine = Parking(path), Machine(3.0, 0.5)
    machine.run(parking, 200, dice)
    assert parking.is_parked(1)
    parking.save()
    following = Parking(path)
    assert following.is_parked(1)
    _, drafted = machine.run(following, 100, dice)
    assert drafted == 0
    for broken in ("", "[]", "{", '{"tokens": 1}', '{"tokens": 1, "ledgers": {"1": 2}}'):
        path.write_text(broken)
        assert not Parking(path).is_parked(1)


def test_a_number_that_cannot_pay_is_not_tried_first():
    """With two tokens a round known from one request, eight would need three."""
    parking = Parking(draft_cost=lambda n: 3.0 if n == 8 else 1.2)
    Machine(1.2, 0.5).run(parking, 500, random.Random(0))
    assert not parking.wants_drafts(8) and parking.is_parked(8)
    assert not parking.is_parked(4)


# -- in the engine --------------------------------------------------------------------------------


class Pattern(Parking):
    """Parked for some rounds, then not for some, whatever the times are."""

    def __init__(self, parked: int, drafting: int) -> None:
        super().__init__()
        self._parked, self._period, self._round = parked, parked + drafting, 0

    def wants_drafts(self, num_requests: int) -> bool:
        self._round += 1
        return (self._round - 1) % self._period >= self._parked


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
    drafted = [e for e in told if not e.is_parked]
    assert finished.stats.tau == pytest.approx(sum(e.accepted + 1 for e in drafted) / len(drafted))


def test_the_next_turn_continues_a_parked_one():
    """The kept cache of the drafter is as long as the target's."""
    engine = engine_with("vanilla", Pattern(10**6, 1))
    (first,) = decode(engine, [request(max_tokens=20)])
    longer = request((*request().prompt_ids, *first, 5, 6), 20)
    engine._rounds._parking = None
    (second,) = decode(engine, [longer])
    assert [second] == decode(golden("vanilla").engine, [replace(longer, plain=True)])
    fresh = engine_with("vanilla", None)
    assert drafts(fresh, longer) == drafts(engine, longer)


def drafts(engine: Engine, ask) -> list[tuple[int, ...]]:
    return [e.draft for e in engine.run([ask]) if isinstance(e, Round)]
