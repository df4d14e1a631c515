"""Finished rounds correct the table, nobody waits for a measurement, and no token changes."""

import random
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dspark.config import ScheduleConfig
from dspark.engine import scheduled_engine
from dspark.engine.loop import Engine
from dspark.engine.rounds.finished_round import FinishedRound, RoundObserver
from dspark.engine.schedule import sps_watch
from dspark.engine.schedule.parking import Parking
from dspark.engine.schedule.policies import SpsSchedule
from dspark.engine.schedule.sps_profile import Correction, SpsTable, stored_tables
from dspark.engine.schedule.sps_watch import SpsWatch
from dspark.engine.scheduled_engine import sps_folder
from tests.engine.machine import DEMO, Machine
from tests.engine.pairs import TABLE, decode, golden, request

MACHINE = Machine(DEMO, 1.7, 0.5)


@pytest.fixture
def stored():
    """A session whose table is on disk, and the path of that table."""
    session = golden("vanilla", schedule=ScheduleConfig("auto"))
    (path,) = sps_folder().glob("*.json")
    return session, path


def rewrite(path, factor, **changes):
    """Store the table as a busy machine would have measured it."""
    table = SpsTable.load(path)
    slow = tuple(factor * seconds for seconds in table.verify_seconds)
    table = replace(table, verify_seconds=slow, spread=0.0, **changes)
    table.save(path)
    return table


def forbidden(*_):
    raise AssertionError("measured while requests wait")


@pytest.mark.parametrize("factor", [100.0, 0.001], ids=["too slow", "too fast"])
def test_a_wrong_table_is_corrected_within_an_answer(stored, factor, monkeypatch):
    _, path = stored
    wrong = rewrite(path, factor)
    monkeypatch.setattr(scheduled_engine, "measure_sps", forbidden)
    session = golden("vanilla", schedule=ScheduleConfig("auto"))
    decode(session.engine, [request(max_tokens=60)])
    corrected = SpsTable.load(path)
    assert corrected.verify_seconds == wrong.verify_seconds
    # a hundredth, or a thousandfold, was put in: far more than noise
    assert not 0.1 < corrected.curve(1).verify(1) / wrong.verify_seconds[0] < 10
    assert session.engine.scheduler.table == corrected and corrected.has_drifted


@pytest.mark.parametrize(
    "change",
    [{"spread": 2.0}, {"spread": 0.0, "corrections": (Correction(1, 1.6, 1.0, 1.0),)}],
    ids=["noisy", "drifted"],
)
def test_a_bad_table_is_measured_again_at_the_next_start(stored, change):
    _, path = stored
    replace(SpsTable.load(path), measured_at=1.0, **change).save(path)
    golden("vanilla", schedule=ScheduleConfig("auto"))
    assert SpsTable.load(path).measured_at > time.time() - 600


def test_a_good_table_stays(stored, monkeypatch):
    _, path = stored
    replace(SpsTable.load(path), spread=0.0).save(path)
    monkeypatch.setattr(scheduled_engine, "measure_sps", forbidden)
    golden("vanilla", schedule=ScheduleConfig("auto"))


PLAIN_REST = 0.7  # seconds of a plain round that are not its pass


def follow(watch, requests, rounds, dice, *, slower=1.0, has_drafts=True):
    """Rounds of MACHINE, `slower` than it says."""
    for _ in range(rounds):
        rows = requests + (dice.randint(0, 4 * requests) if has_drafts else 0)
        noise = slower * dice.lognormvariate(0.0, 0.05) * (1 + 9 * (dice.random() < 0.02))
        others = (MACHINE.draft_seconds(requests) if has_drafts else PLAIN_REST) * noise
        seconds = MACHINE.pass_seconds(rows) * noise
        watch.follow(requests, rows, 100, seconds, others, has_drafts=has_drafts)


def test_rounds_say_what_rows_and_drafts_cost(tmp_path):
    """The table believes that rows are free and drafts dear; a new number of requests goes by its
    neighbour's rounds until it has its own."""
    wrong = SpsTable((1, 64), (5.0, 7.0), (1,), (9.0,), measured_at=1.0)
    schedule, dice = SpsSchedule(wrong), random.Random(0)
    watch = SpsWatch(schedule, tmp_path / "sps.json")
    follow(watch, 4, 320, dice)
    curve = schedule.table.curve(4)
    for rows in (4, 8, 20):
        assert curve.verify(rows) == pytest.approx(MACHINE.pass_seconds(rows), rel=0.2)
    assert curve.draft_seconds == pytest.approx(MACHINE.draft_seconds(4), rel=0.2)
    dearer = schedule.table.curve(8).verify(16) / schedule.table.curve(8).verify(8)
    assert dearer > 1.2 > wrong.curve(8).verify(16) / wrong.curve(8).verify(8)
    follow(watch, 4, 160, dice, slower=2.0, has_drafts=False)
    plain = schedule.table.curve(4).verify(4)
    assert plain == pytest.approx(2 * MACHINE.pass_seconds(4), rel=0.2)
    rest = schedule.table.curve(4).plain_seconds - plain
    assert rest == pytest.approx(2 * PLAIN_REST, rel=0.2)
    watch.save()
    assert SpsTable.load(tmp_path / "sps.json") == schedule.table


def test_a_new_measurement_takes_the_place_of_corrections(tmp_path):
    schedule, dice = SpsSchedule(TABLE), random.Random(0)
    watch = SpsWatch(schedule, tmp_path / "sps.json")
    follow(watch, 1, 64, dice)
    assert schedule.table.corrections
    schedule.table = MACHINE.table()
    follow(watch, 1, 64, dice)
    (correction,) = schedule.table.corrections
    assert schedule.table.rows == MACHINE.table().rows
    assert correction.level == pytest.approx(1.0, rel=0.25)


@pytest.mark.parametrize("variant", ["vanilla", "eagle3"])
def test_correcting_between_rounds_changes_no_token(variant, monkeypatch, tmp_path):
    session = golden(variant)
    old = session.engine
    monkeypatch.setattr(sps_watch, "EVERY", 1)
    schedule = SpsSchedule(TABLE)
    watch = SpsWatch(schedule, tmp_path / "sps.json")
    codec, config = session.tokenizer, old.config
    engine = Engine(old.target, old.drafter, schedule, codec, config, watch)
    asks = [request(range(3, 3 + n)) for n in (12, 5)]
    plain = [replace(ask, plain=True) for ask in asks]
    assert decode(engine, asks) == decode(golden(variant).engine, plain)
    assert schedule.table.corrections


def test_stored_tables_come_newest_first(tmp_path):
    for name, moment in (("a", 1.0), ("b", 3.0), ("c", 2.0)):
        replace(TABLE, pair=name, measured_at=moment).save(tmp_path / f"{name}.json")
    (tmp_path / "broken.json").write_text("{")
    assert [table.pair for table in stored_tables(tmp_path)] == ["b", "c", "a"]


def test_a_new_number_of_requests_stalls_no_round(stored, monkeypatch):
    session, path = stored
    alone = decode(golden("vanilla").engine, [request(max_tokens=30)])
    monkeypatch.setattr(scheduled_engine, "measure_sps", forbidden)
    verify, passes = session.engine.target.verify, []
    monkeypatch.setattr(
        session.engine.target, "verify", lambda *parts: passes.append(1) or verify(*parts)
    )
    rounds = []
    for event in session.engine.run([request(max_tokens=30) for _ in range(5)]):
        rounds += [event.index] if type(event).__name__ == "Round" else []
    assert len(passes) == 1 + max(rounds)  # every pass is a round
    assert decode(session.engine, [request(max_tokens=30)] * 5) == alone * 5
    assert {each.requests for each in SpsTable.load(path).corrections} & {4, 8}


def test_of_a_long_row_of_parked_rounds_every_fourth_is_followed():
    followed: list[bool] = []
    watch = SimpleNamespace(follow=lambda *_, has_drafts, use: followed.append(has_drafts))
    parking = Parking(
        expected_gain=lambda num_requests, survival: SimpleNamespace(gain=0.3, cost=6.0)
    )
    observer = RoundObserver(parking, watch)

    def number_followed(rounds: int, requests: int = 1, **how) -> int:
        followed.clear()
        for _ in range(rounds):
            blocks = [(0, 0)] * requests
            facts = {"has_drafts": False, "seconds": 0.1, "pass_seconds": 0.1, **how}
            observer.keep(FinishedRound(blocks, requests, 100, **facts))
            observer.tell(0.1)
        return len(followed)

    assert parking.is_parked(1) and parking.is_parked(2)
    assert number_followed(16) == 16 and number_followed(40) == 10
    assert number_followed(16, 2) == 16 and number_followed(40, 2) == 10
    assert number_followed(3, 2, has_drafts=True) == 3 and number_followed(16, 2) == 16
    assert number_followed(40, 2, use=object()) == 40  # of experts
    assert parking.is_parked(1) and number_followed(16) == 16
