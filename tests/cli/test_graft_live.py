"""What a person sees of a grafting, from scripted events. About a second."""

import io
from typing import Any

import pytest
from rich.console import Console

from dspark.config import GraftConfig
from dspark.graft.data.corpus import CorpusProgress
from dspark.graft.job import Stopped, Validated
from dspark.graft.train.trainer import StepReport
from dspark_cli.views import graft_live
from dspark_cli.views.graft_lines import duration_text
from dspark_cli.views.graft_live import LiveView, PlainView, open_view

CONFIG = GraftConfig(steps=200)


def _report(step: int, tau: float = 1.5, **changes: Any) -> StepReport:
    figures: dict[str, Any] = {
        "step": step,
        "loss": 2.25,
        "cross_entropy": 4.5,
        "l1": 1.25,
        "confidence": 0.625,
        "tau": tau,
        "acceptance_by_position": (0.75, 0.25),
        "learning_rate": 1e-3,
        "grad_norm": 1.0,
        "tokens": 1000,
        "positions": 10,
        "seconds": 2.0,
    }
    return StepReport(**{**figures, **changes})


@pytest.fixture
def view() -> LiveView:
    console = Console(
        record=True, width=100, file=io.StringIO(), force_terminal=True, color_system=None
    )
    return LiveView(CONFIG, console)


def _drawn(view: LiveView) -> str:
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(view.panel())
    return console.export_text()


def test_the_panel_of_a_step_shows_everything_that_is_watched(view: LiveView) -> None:
    view.tell(_report(49))
    view.tell(_report(50, 1.75))
    shown = _drawn(view)
    for figure in (
        "step 50 of 200",
        "2.00 s per step",
        "500 tokens/s",
        "GiB",
        "about 5 min left",
        "loss 2.250",
        "CE 4.500",
        "L1 1.250",
        "confidence 0.625",
        "expected τ 1.75",
        "draft 1",
        "draft 2",
    ):
        assert figure in shown, figure


def test_bars_are_as_long_as_the_acceptance(view: LiveView) -> None:
    view.tell(_report(1))
    lines = {line.split()[2]: line for line in _drawn(view).splitlines() if " draft " in line}
    lengths = [lines[place].count("█") for place in ("1", "2")]
    assert lengths == [int(rate * graft_live.BAR_WIDTH) for rate in (0.75, 0.25)]


def test_the_best_held_out_figure_stays(view: LiveView) -> None:
    view.tell(_report(10))
    view.tell(Validated(_report(10, 1.625)))
    view.tell(Validated(_report(20, 1.375, acceptance_by_position=(0.5, 0.125))))
    shown = _drawn(view)
    assert "τ 1.375 at step 20, best 1.625 at step 10" in shown
    assert "held out 0.50" in shown and "held out 0.12" in shown


def test_a_held_out_line_stays_on_the_screen(view: LiveView) -> None:
    with view.live:
        view.tell(_report(100))
        view.tell(Validated(_report(100, 1.625)))
    printed = view.live.console.export_text()
    assert "held out at step 100: tau 1.625" in printed


def test_a_stage_tells_how_far_it_is(view: LiveView, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(graft_live.time, "monotonic", lambda: now[0])
    view.tell(CorpusProgress("writing answers", 40, 100))
    assert "left" not in _drawn(view)
    now[0] = 110.0
    view.tell(CorpusProgress("writing answers", 60, 100))
    shown = _drawn(view)
    assert "writing answers" in shown and "60 of 100" in shown and "about 20 s left" in shown


def test_a_resumed_run_counts_only_the_steps_that_are_left(view: LiveView) -> None:
    view.tell(_report(190))
    assert "about 20 s left" in _drawn(view)


def test_what_the_terminal_echoes_for_ctrl_c_fits_beside_the_panel(view: LiveView) -> None:
    view.tell(_report(1))
    widest = max(len(line.rstrip()) for line in _drawn(view).splitlines())
    assert widest <= 100 - len("^C") - 1


def test_ctrl_c_is_answered_in_the_panel(view: LiveView) -> None:
    view.tell(_report(1))
    assert "Ctrl+C stops" in _drawn(view)
    view.stopping()
    assert "stopping after this step" in _drawn(view)


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with open_view(CONFIG) as view:
        assert isinstance(view, PlainView)
        view.tell(CorpusProgress("reading prompts", 3, 3, ("1 line skipped",)))
        view.tell(Validated(_report(100, 1.625)))
        view.stopping()
        view.tell(Stopped(101))
    captured = capsys.readouterr()
    assert captured.out == "" and "\x1b" not in captured.err
    assert captured.err.splitlines() == [
        "1 line skipped",
        "reading prompts: 3 of 3",
        "held out at step 100: tau 1.625, acceptance 0.75 0.25, CE 4.500, L1 1.250, confidence "
        "0.625",
        "stopping after this step ...",
        "stopped at step 101; re-run the same command to resume",
    ]


def test_a_stage_of_one_is_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    PlainView(CONFIG).tell(CorpusProgress("calibrating the confidences", 0, 1))
    assert capsys.readouterr().err == "calibrating the confidences\n"


def test_plain_steps_come_seldom(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(graft_live.time, "monotonic", lambda: now[0])
    plain = PlainView(CONFIG)
    for step in range(1, 21):
        now[0] += 1.0
        plain.tell(_report(step))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/200", "6/200", "11/200", "16/200"]
    assert "2.0 s per step, about 7 min left" in lines[0]


def test_a_terminal_gets_the_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with open_view(CONFIG) as view:
        assert isinstance(view, LiveView)
    with open_view(CONFIG, is_plain=True) as view:
        assert isinstance(view, PlainView)


@pytest.mark.parametrize(
    ("seconds", "text"), [(42.0, "42 s"), (600.0, "10 min"), (7500.0, "2 h 05 min")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
