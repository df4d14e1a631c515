"""Races: whoever is behind goes next, and equal texts are told from others."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from dspark.bench.race import Lap, RaceResult, RaceStep, Runner, race
from dspark.chat.race_view import Lane, verdict
from dspark.config import SamplingConfig
from dspark.events import DecodeStats, Finished, Piece, PrefillProgress
from dspark.progress import follow
from dspark_cli.output.answer import stats_line
from dspark_cli.views.race import STYLES, RaceView, lap_lines, legend

STATS = DecodeStats(3, 4, 3, 0, 0, 0, 0.1, 1.0)
END = Finished(0, "max_tokens", (5, 6), "ab", STATS)


def runner(name, seconds, ids=(5, 6)):
    """Takes so long for each of its steps."""

    def generate(prompt_ids, sampling, stop, *, plain):
        for step in seconds:
            time.sleep(step)
            yield PrefillProgress(0, 1, 1, (Piece(5, "a", False),))
        yield replace(END, token_ids=ids)

    return Runner(name, SimpleNamespace(generate=generate))


def test_both_have_had_the_same_time_at_any_moment():
    longest = 0.02
    steps = []
    slow, quick = runner("slow", [longest] * 6), runner("quick", [0.004] * 12)
    result = follow(race([slow, quick], [1]), steps.append)
    clocks = [0.0, 0.0]
    for step in steps:
        other = 1 - step.runner
        # it was behind, or the other one had finished
        ended = any(isinstance(s.event, Finished) and s.runner == other for s in steps)
        assert clocks[step.runner] <= clocks[other] or (ended and clocks[other] > 0)
        clocks[step.runner] = step.seconds
    first_end = next(i for i, step in enumerate(steps) if isinstance(step.event, Finished))
    assert steps[first_end].runner == 1, "12 steps of 4 ms end before 6 of 20"
    assert [lap.seconds for lap in result.laps] == clocks
    assert clocks[0] >= 6 * longest and clocks[1] >= 12 * 0.004


@pytest.mark.parametrize(
    ("ids", "sampling", "is_identical"),
    [
        ((5, 6), SamplingConfig(), True),
        ((5, 7), SamplingConfig(), False),
        ((5, 7), SamplingConfig(temperature=0.7, seed=1), False),
        ((5, 7), SamplingConfig(temperature=0.7), None),
    ],
)
def test_the_verdict_is_of_the_tokens(ids, sampling, is_identical):
    result = follow(race([runner("plain", []), runner("mine", [], ids)], [1], sampling))
    assert result.is_identical is is_identical
    assert ("DIFFERENT" in verdict(result)) is (is_identical is False)


@pytest.mark.parametrize(
    ("mine_seconds", "said"),
    [
        (0.8, "mine was first; mine wrote 2.00× as many tokens a second as plain"),
        (3.2, "plain was first; mine wrote 0.50× as many tokens a second as plain"),
        (1.601, "a dead heat; mine wrote 1.00× as many tokens a second as plain"),
    ],
)
def test_the_speed_is_that_of_the_times_shown(mine_seconds, said):
    """Whatever the engine's own clock says."""
    mine = replace(END, stats=replace(STATS, decode_seconds=0.1, prefill_seconds=9.0))
    result = RaceResult((Lap("plain", 1.6, END), Lap("mine", mine_seconds, mine)), True)
    assert result.speedup == pytest.approx(1.6 / mine_seconds)
    assert verdict(result) == f"{said}, reading the prompt included; the same text"
    nothing = replace(END, stats=replace(STATS, new_tokens=0))
    assert RaceResult((Lap("plain", 1.1, nothing), Lap("mine", 1.0, nothing)), True).speedup is None


def test_a_clock_counts_its_own_turns_and_panel_summary_and_stats_agree():
    slow, quick = runner("slow", [0.02] * 3), runner("quick", [0.002] * 4)
    lanes = [Lane("slow"), Lane("quick")]
    result = follow(race([slow, quick], [1]), lambda step: lanes[step.runner].take(step))
    for lane, lap, line in zip(lanes, result.laps, lap_lines(result), strict=True):
        stats = lap.finished.stats
        assert stats.prefill_seconds + stats.decode_seconds == pytest.approx(lap.seconds)
        assert 0 < stats.prefill_seconds < lap.seconds
        rate = 4 / lap.seconds
        assert lap.tokens_per_second == pytest.approx(rate)
        assert stats.total_tokens_per_second == pytest.approx(rate)
        assert lane.figures == f"{rate:.1f} tok/s · took {lap.seconds:.2f} s"
        assert f"{rate:.1f} tok/s" in line and line.endswith(f" · {lap.seconds:.2f} s")


def test_a_runner_that_drafted_nothing_is_named():
    parked = replace(END, stats=replace(STATS, parked=3, draft_cost=6.2, draft_tokens=2.2))
    some = replace(parked, stats=replace(parked.stats, drafted=2))
    told = "mine drafted nothing: drafts would not pay here"
    for finished, is_told in ((parked, True), (some, False), (END, False)):
        result = RaceResult((Lap("plain", 1.0, END), Lap("mine", 1.1, finished)), True)
        assert (told in verdict(result)) is is_told
    why = "a round with drafts would take as long as 6.2 tokens without, and give 2.2"
    assert stats_line(parked.stats).endswith(f"no drafts: {why}")
    assert stats_line(some.stats).endswith(f"few drafts: {why}")


def test_the_columns_show_the_end_of_what_was_written():
    console = Console(width=60, height=10, force_terminal=True, record=True)
    view = RaceView(["plain", "mine"], console)
    long = "".join(f"line {i}\n" for i in range(40))
    for index, text in enumerate([long, "Short [bold]"]):
        pieces = (Piece(1, text, False), Piece(2, "", False))
        view.take(RaceStep(index, 0.5, PrefillProgress(0, 1, 1, pieces[:1])))
        view.take(RaceStep(index, 1.0, PrefillProgress(0, 1, 1, pieces[1:])))
    view.take(RaceStep(1, 1.0, END))
    with view.live:
        view.draw()
    frames = console.export_text()
    shown = frames[frames.rindex("╭─ plain") :].rstrip("\n")
    assert "line 39" in shown and "line 1\n" not in shown and "Short [bold]" in shown
    assert "2.0 tok/s · 1.00 s" in shown and "4.0 tok/s · took 1.00 s" in shown
    assert shown.splitlines()[-1].strip() == "accepted draft  rejected draft  the model's own"
    assert legend().spans[0].style == STYLES["accepted"]
    assert len(shown.splitlines()) < 10
