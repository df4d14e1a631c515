"""Many requests at a time: figures from runs whose times are known, profiles, the simulation."""

import pytest

from dspark.bench import concurrency
from dspark.bench.concurrency import LoadRun, run_load, schedules, summarise_load
from dspark.bench.config import BenchConfig
from dspark.bench.profile import expected_gain, run_profile
from dspark.bench.prompts import BenchPrompt
from dspark.bench.simulation import PAPER_TAU, acceptance_of, simulate
from dspark.config import ScheduleConfig
from dspark.engine.schedule.sps_profile import SpsTable
from dspark.progress import follow
from dspark_cli.output.text_plot import text_plot
from dspark_cli.views.concurrency import print_load
from dspark_cli.views.profile import print_profile
from tests.engine.pairs import PROMPT, golden

PROMPTS = [BenchPrompt("chat", PROMPT), BenchPrompt("chat", PROMPT[3:])]


def run(arm, trial, rate, answers=((1, 2),), verified=0, parked=0, plain=1.0):
    times = (rate,), (0.5,), (0.1, 0.3)
    return LoadRun(arm, 1, trial, rate, *times, 10, verified, 5, parked, answers, plain)


def test_figures_are_medians_and_ratios_to_the_run_beside():
    rates = enumerate(((10.0, 15.0), (20.0, 20.0), (40.0, 80.0)))
    pairs = [
        (run("plain", trial, rate, plain=rate), run("fixed 2", trial, own, verified=20, plain=rate))
        for trial, (rate, own) in rates
    ]
    plain, other = zip(*pairs, strict=True)
    report = summarise_load([*plain, *other], is_compared=True)
    figures = report.of("fixed 2", 1)
    assert figures.total.median == 20.0 and figures.over_plain.trials == (1.5, 1.0, 2.0)
    assert figures.over_plain.median == 1.5 and figures.verified == 2.0 and figures.tau == 1.5
    assert figures.gap_p50 == pytest.approx(0.2) and figures.is_identical
    assert report.best_static(1) == 1.5


def test_another_answer_is_told():
    runs = [run("plain", 0, 1.0), run("scheduler", 0, 1.0, answers=((1, 3),))]
    report = summarise_load(runs, is_compared=True)
    assert not report.of("scheduler", 1).is_identical and report.of("plain", 1).is_identical


def test_parked_rounds_do_not_lower_the_accepted_length():
    runs = [run("plain", 0, 1.0), run("scheduler", 0, 1.0, verified=10, parked=5)]
    figures = summarise_load(runs, is_compared=True).of("scheduler", 1)
    assert figures.tau == 2.0 and figures.parked == 0.5


def test_every_arm_writes_what_plain_decoding_writes(capsys):
    session = golden("vanilla", schedule=ScheduleConfig("auto"))
    known = schedules(session.engine.drafter.block_size, has_confidence=True)
    arms = ["fixed 2", "threshold 0.5", "scheduler", "async scheduler"]
    assert {"fixed 1", "fixed 6", *arms} <= {*known}
    config = BenchConfig(trials=1, max_tokens=8, warmup_tokens=2)
    report = follow(run_load(session, PROMPTS, [1, 3], config, arms))
    assert set(report.arms) == {"plain", *arms} and report.counts == (1, 3)
    assert all(each.is_identical for each in report.figures)
    assert all(each.total.median > 0 for each in report.figures)
    assert report.of("fixed 2", 3).verified == pytest.approx(2, abs=0.2)
    assert report.of("plain", 3).verified == 0
    print_load(report)
    printed = capsys.readouterr().out
    assert "3 requests at a time" in printed and "identical to plain" in printed


def test_an_interrupted_bench_keeps_its_complete_trials(monkeypatch):
    session, done = golden("vanilla", schedule=ScheduleConfig("auto")), []

    def interrupted(*parts, one_load=concurrency.one_load):
        done.append(parts)
        if len(done) > 2 + 2 + 1:  # warm-up, one trial with its plain run, one run more
            raise KeyboardInterrupt
        return one_load(*parts)

    monkeypatch.setattr(concurrency, "one_load", interrupted)
    config = BenchConfig(trials=2, max_tokens=4, warmup_tokens=2)
    report = follow(run_load(session, PROMPTS, [1], config, ["fixed 1"]))
    assert report.trials == 1 and report.arms == ("plain", "fixed 1")


def test_a_profile_measures_what_the_schedule_reads(capsys):
    session = golden("vanilla", schedule=ScheduleConfig("auto"))
    profile = follow(run_profile(session, PROMPTS, (1, 2)))
    assert {(c.requests, c.depth) for c in profile.table.curves} >= {(2, 128)}
    assert SpsTable.load(session.sps_path()) == profile.table == session.engine.scheduler.table
    assert list(profile.survival) == sorted(profile.survival, reverse=True)
    assert profile.knee in profile.table.rows
    print_profile(profile)
    assert "expected" in capsys.readouterr().out


def test_the_expected_gain_is_tokens_over_time():
    table = SpsTable((1, 2, 3), (1.0, 1.5, 3.0), (1,), (0.5,))
    gain = expected_gain(table.curve(1), (0.8, 0.6))
    assert (gain.length, gain.gain) == (1, pytest.approx(1.8 / 2.0)) and not gain.pays


# -- the simulation -------------------------------------------------------------------------------


def test_acceptance_gives_the_published_length():
    for tau in PAPER_TAU.values():
        rate = acceptance_of(tau)
        assert sum(rate**k for k in range(8)) == pytest.approx(tau)


def test_the_budget_falls_with_the_load_and_loses_little():
    """Of a card that is free up to sixteen rows and multiplies after that."""
    rows = (1, 16, 1600)
    table = SpsTable(rows, (1.0, 1.1, 100.0), (1, 200), (0.1, 2.0))
    points = {(p.arm, p.requests): p for p in simulate(table, (1, 8, 64), rounds=60)}
    budgets = [points["scheduler", count].verified for count in (1, 8, 64)]
    assert budgets[0] > 5 and budgets[0] > budgets[1] > budgets[2]
    for count in (1, 8, 64):  # parking loses ALLOWANCE and one round, of 60
        assert points["scheduler", count].total > points["plain", count].total * 60 / (60 + 9)


def test_a_plot_has_its_marks_where_the_points_are():
    lines = text_plot({"a": [(1, 0.0), (2, 4.0)], "b": [(2, 2.0)]}, "x", "y")
    assert lines[0] == "y" and "●" in lines[1] and lines[-1] == "● a   ○ b"
    assert next(i for i, line in enumerate(lines) if "○" in line) == 7
    assert "●" in lines[13]
