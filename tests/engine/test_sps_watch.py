"""A table measured in a busy minute does not last, and measuring again changes no token."""

import time
from dataclasses import replace

import pytest

from dspark.config import ScheduleConfig
from dspark.engine.loop import Engine
from dspark.engine.schedule import sps_watch
from dspark.engine.schedule.policies import SpsSchedule
from dspark.engine.schedule.sps_profile import SpsTable, measured_rows, stored_tables
from dspark.engine.schedule.sps_watch import SpsWatch
from dspark.engine.scheduled_engine import sps_folder
from tests.engine.pairs import TABLE, decode, golden, request


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


@pytest.mark.parametrize("factor", [100.0, 0.001], ids=["too slow", "too fast"])
def test_a_wrong_table_is_replaced_within_an_answer(stored, factor):
    _, path = stored
    wrong = rewrite(path, factor, measured_at=1.0)
    session = golden("vanilla", schedule=ScheduleConfig("auto"))
    decode(session.engine, [request(max_tokens=60)])
    measured = SpsTable.load(path)
    assert measured.measured_at > time.time() - 600
    # a hundredth, or a thousandfold, was put in: far more than noise
    assert not 0.1 < measured.verify_seconds[0] / wrong.verify_seconds[0] < 10
    assert measured.pair == "test"


def test_a_right_table_stays(stored, monkeypatch):
    session, path = stored
    before = path.read_text()
    monkeypatch.setattr(sps_watch, "DRIFT", 1e6)  # no noise of this machine reaches that
    decode(session.engine, [request(max_tokens=60)])
    assert path.read_text() == before


def test_a_noisy_table_is_measured_again_at_the_next_start(stored):
    _, path = stored
    replace(SpsTable.load(path), spread=2.0, measured_at=1.0).save(path)
    golden("vanilla", schedule=ScheduleConfig("auto"))
    assert SpsTable.load(path).measured_at > time.time() - 600


@pytest.mark.parametrize("variant", ["vanilla", "eagle3", "gemma4"])
def test_measuring_between_rounds_changes_no_token(variant, monkeypatch, tmp_path):
    """Measured after every round, at the slot of the request itself."""
    session = golden(variant)
    old = session.engine
    monkeypatch.setattr(sps_watch, "WINDOW", 1)
    monkeypatch.setattr(sps_watch, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(sps_watch, "DRIFT", 1.0)
    count = []
    monkeypatch.setattr(
        sps_watch,
        "measure_sps_at",
        lambda *parts, measure=sps_watch.measure_sps_at: count.append(1) or measure(*parts),
    )
    monkeypatch.setattr(sps_watch, "measured_rows", lambda size: measured_rows(size)[:-2])
    schedule = SpsSchedule(TABLE)
    watch = SpsWatch(schedule, tmp_path / "sps.json")
    engine = Engine(old.target, old.drafter, schedule, session.tokenizer, old.config, watch)
    prompt = range(3, 15)
    assert decode(engine, [request(prompt)]) == decode(
        golden(variant).engine, [request(prompt, plain=True)]
    )
    assert len(count) >= 2


def test_stored_tables_come_newest_first(tmp_path):
    for name, moment in (("a", 1.0), ("b", 3.0), ("c", 2.0)):
        replace(TABLE, pair=name, measured_at=moment).save(tmp_path / f"{name}.json")
    (tmp_path / "broken.json").write_text("{")
    assert [table.pair for table in stored_tables(tmp_path)] == ["b", "c", "a"]


def test_drafting_for_several_requests_is_measured_when_it_happens(stored):
    session, path = stored
    asks = [request(max_tokens=30) for _ in range(5)]
    alone = decode(golden("vanilla").engine, [request(max_tokens=30)])
    assert decode(session.engine, asks) == alone * 5
    table = SpsTable.load(path)
    assert table.requests == (1, 2, 4) or table.requests == (1, 4)
    assert len(table.draft_seconds) == len(table.requests) and min(table.draft_seconds) > 0
