"""Races: whoever is behind goes next, and equal texts are told from others."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from dspark.bench.race import Lap, RaceResult, RaceStep, Runner, race
from dspark.config import SamplingConfig
from dspark.events import DecodeStats, Finished, Piece, PrefillProgress
from dspark.progress import follow
from dspark_cli.views.race import RaceView, verdict

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


def test_the_speed_is_of_decoding_alone():
    quick = replace(END, stats=replace(STATS, decode_seconds=0.5, prefill_seconds=9.0))
    result = RaceResult((Lap("plain", 1.1, END), Lap("mine", 9.5, quick)), True)
    assert result.speedup == pytest.approx(2.0)
    assert verdict(result) == "mine is 2.00× as fast as plain; the same text"
    single = replace(END, stats=replace(STATS, new_tokens=1, decode_seconds=0.0))
    assert RaceResult((Lap("plain", 1.1, single), Lap("mine", 1.0, single)), True).speedup is None


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
    assert "2.0 tok/s · 1.0 s" in shown and "2.0 tok/s · done in 1.0 s" in shown
    assert len(shown.splitlines()) < 10
