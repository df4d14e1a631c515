"""Algorithm 1: admit by survival while expected throughput rises, stop at the first drop."""

from dataclasses import replace

import pytest
import torch

from dspark.config import ScheduleConfig
from dspark.engine.schedule.policies import (
    AsyncSpsSchedule,
    FullSchedule,
    SpsSchedule,
    ThresholdSchedule,
)
from dspark.engine.schedule.sps_measure import measure_sps
from dspark.engine.schedule.sps_profile import SpsCurve, SpsTable
from tests.engine.pairs import TABLE, decode, golden, request


def throughput(table, survival, lengths):
    rows = len(lengths) + sum(lengths)
    gained = sum(s for row, n in zip(survival, lengths, strict=True) for s in row[:n])
    return (len(lengths) + gained) * table.steps_per_second(rows, len(lengths))


@pytest.mark.parametrize("num_requests", [1, 3])
def test_admits_while_throughput_rises(num_requests):
    generator = torch.Generator().manual_seed(0)
    schedule = SpsSchedule(TABLE)
    for _ in range(50):
        confidences = torch.rand(num_requests, 5, generator=generator)
        survival = confidences.cumprod(1).tolist()
        lengths = schedule.admit(confidences, [5] * num_requests)
        # replay: every admitted one raised it (or kept it), and the next best would lower it
        order = sorted(
            ((survival[r][k], r, k) for r in range(num_requests) for k in range(5)),
            key=lambda c: -c[0],
        )
        replayed = [0] * num_requests
        for _, r, k in order[: sum(lengths)]:
            assert k == replayed[r]
            before = throughput(TABLE, survival, replayed)
            replayed[r] += 1
            assert throughput(TABLE, survival, replayed) >= before - 1e-12
        assert replayed == lengths
        if sum(lengths) < 5 * num_requests:
            _, r, _ = order[sum(lengths)]
            following = [n + (i == r) for i, n in enumerate(lengths)]
            assert throughput(TABLE, survival, following) < throughput(TABLE, survival, lengths)


def test_stops_at_the_first_drop_even_if_more_would_pay():
    jagged = SpsTable((1, 2, 3), (1.0, 2.0, 2.0), (1,), (0.0,))
    confident = torch.ones(1, 2)
    assert throughput(jagged, [[1, 1]], [2]) > throughput(jagged, [[1, 1]], [0])
    # Θ: 1, then 2 · 0.5 = 1 (no drop), then 3 · 0.5
    assert SpsSchedule(jagged).admit(confident, [2]) == [2]
    assert SpsSchedule(jagged).admit(confident * 0.99, [2]) == [0]


def test_admission_of_a_slot_ignores_what_comes_after_it():
    generator = torch.Generator().manual_seed(1)
    for schedule in (SpsSchedule(TABLE), ThresholdSchedule(0.5)):
        for _ in range(50):
            confidences = torch.rand(1, 6, generator=generator)
            for k in range(6):
                changed = confidences.clone()
                changed[0, k + 1 :] = torch.rand(5 - k, generator=generator)
                one = schedule.admit(confidences, [6])[0]
                other = schedule.admit(changed, [6])[0]
                assert (one > k) == (other > k)


def test_limits_and_heads_without_confidence():
    for schedule in (FullSchedule(), ThresholdSchedule(0.1), SpsSchedule(TABLE)):
        assert schedule.admit(None, [5, 2]) == [5, 2]
        lengths = schedule.admit(torch.full((2, 5), 0.999), [5, 2])
        assert lengths[1] <= 2 and lengths[0] <= 5


def test_threshold_cuts_at_the_first_slot_below():
    confidences = torch.tensor([[0.9, 0.4, 0.9], [0.3, 0.9, 0.9], [0.5, 0.5, 0.5]])
    assert ThresholdSchedule(0.5).admit(confidences, [3, 3, 3]) == [1, 0, 3]


def test_profile_is_measured_once_and_kept(monkeypatch):
    from dspark.engine import scheduled_engine as module

    measured = []

    def counting(target, drafter, pair):
        measured.append(1)
        return replace(measure_sps(target, drafter, pair), spread=0.0)  # as on an idle machine

    monkeypatch.setattr(module, "measure_sps", counting)
    first = golden("vanilla", schedule=ScheduleConfig("auto"))
    second = golden("vanilla", schedule=ScheduleConfig("auto"))
    assert len(measured) == 1
    assert decode(first.engine, [request()]) == decode(second.engine, [request(plain=True)])


def test_a_broken_profile_is_measured_again(tmp_path):
    path = tmp_path / "sps.json"
    for content in ("", "[]", "{", '{"rows": 3}', '{"rows": [], "verify_seconds": []}'):
        path.write_text(content)
        assert SpsTable.load(path) is None
    kept = replace(TABLE, measured_at=1.0)
    kept.save(path)
    assert SpsTable.load(path) == kept
    assert [p.name for p in tmp_path.iterdir()] == ["sps.json"]


def test_measured_seconds_never_fall_with_rows():
    session = golden("vanilla")
    table = measure_sps(session.engine.target, session.engine.drafter)
    assert list(table.verify_seconds) == sorted(table.verify_seconds)
    assert table.steps_per_second(3, 1) > 0
    assert table.steps_per_second(table.rows[-1] * 2, 1) < table.steps_per_second(1, 1)


# -- by number of requests and depth --------------------------------------------------------------

DEEP = SpsCurve(1, 1128, (1, 2, 8), (2.0, 2.0, 3.0), 0.5)
EIGHT = SpsCurve(8, 128, (8, 16, 64), (4.0, 6.0, 20.0), 1.0)


def test_seconds_grow_with_depth_and_requests_as_measured():
    table = replace(TABLE, requests=(1, 8), draft_seconds=(0.3, 1.0)).with_curve(DEEP)
    assert table.verify(1, 1, 128) == 1.0 and table.verify(1, 1, 1128) == 2.0
    assert table.verify(1, 1, 628) == pytest.approx(1.5)
    assert table.verify(1, 1, 2128) == pytest.approx(3.0)
    assert table.draft(1, 128) == 0.3 and table.draft(1, 1128) == pytest.approx(0.5)
    table = table.with_curve(EIGHT)
    assert table.verify(8, 8) == 4.0 and table.verify(1, 1) == 1.0
    assert 1.0 < table.verify(4, 4) < 4.0
    # each of eight requests reads as much more as one does
    assert table.verify(8, 8, 1128) == pytest.approx(4.0 + 8 * 1.0)
    assert table.curve(8, 128).steps_per_second(16) == pytest.approx(1 / (6.0 + 1.0))


def test_curves_are_stored_and_replaced(tmp_path):
    path = tmp_path / "sps.json"
    table = replace(TABLE, measured_at=1.0).with_curve(DEEP).with_curve(EIGHT)
    table.save(path)
    assert SpsTable.load(path) == table
    assert table.with_curve(replace(DEEP, draft_seconds=9.0)).curves[-1].draft_seconds == 9.0
    assert len(table.with_curve(replace(DEEP, draft_seconds=9.0)).curves) == 2


def test_depth_changes_what_is_worth_verifying():
    """Where a deep context makes every row dearer, fewer drafts are worth theirs."""
    dear = SpsCurve(1, 1128, (1, 8), (1.0, 20.0), 0.3)
    schedule = SpsSchedule(TABLE.with_curve(dear))
    confidences = torch.full((1, 5), 0.8)
    shallow, deep = (schedule.admit(confidences, [5], depth) for depth in (100, 4000))
    assert deep[0] < shallow[0]


# -- the asynchronous variant ---------------------------------------------------------------------

JAGGED = SpsTable((1, 2, 3, 4, 5, 6), (1.0, 1.8, 1.8, 1.8, 1.8, 1.8), (1,), (0.0,))


def test_the_asynchronous_budget_crosses_a_step_that_stops_the_other():
    confident = torch.full((1, 5), 0.7)
    assert SpsSchedule(JAGGED).admit(confident, [5]) == [0]
    schedule = AsyncSpsSchedule(JAGGED)
    lengths = [schedule.admit(confident, [5])[0] for _ in range(4)]
    assert lengths[:2] == [0, 0] and lengths[2:] == [5, 5]


def test_the_asynchronous_budget_goes_to_the_likeliest_drafts():
    """Three of four drafts are in the budget of two rounds ago, wherever they are now."""
    table = SpsTable((2, 3, 4, 5, 6), (1.0, 1.0, 1.0, 1.0, 9.0), (1,), (0.0,))
    schedule = AsyncSpsSchedule(table)
    for _ in range(2):
        schedule.admit(torch.full((2, 2), 0.9), [2, 2])
    assert schedule.admit(torch.tensor([[0.9, 0.8], [0.5, 0.4]]), [2, 2]) == [2, 1]
    assert schedule.admit(torch.tensor([[0.1, 0.1], [0.9, 0.9]]), [2, 2]) == [1, 2]


def test_the_asynchronous_admission_of_a_slot_ignores_what_comes_after_it():
    generator = torch.Generator().manual_seed(2)
    past = [torch.rand(2, 6, generator=generator) for _ in range(2)]
    for _ in range(50):
        confidences = torch.rand(2, 6, generator=generator)
        for k in range(6):
            changed = confidences.clone()
            changed[0, k + 1 :] = torch.rand(5 - k, generator=generator)
            one, other = AsyncSpsSchedule(TABLE), AsyncSpsSchedule(TABLE)
            for schedule in (one, other):
                for earlier in past:
                    schedule.admit(earlier, [6, 6])
            assert (one.admit(confidences, [6, 6])[0] > k) == (other.admit(changed, [6, 6])[0] > k)
