"""Progress of a grafting on stderr: a live panel in a terminal, plain lines elsewhere."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from dspark.config import GraftConfig
from dspark_cli.output.tables import say
from dspark_cli.views.graft_lines import duration_text, figures, lasting_lines

if TYPE_CHECKING:
    from dspark.graft.data.corpus import CorpusProgress
    from dspark.graft.job import GraftEvent
    from dspark.graft.train.trainer import StepReport

RECENT_STEPS = 50
SECONDS_BETWEEN_LINES = 5.0
BAR_WIDTH = 30
WIDEST = 100
STOPPING = "stopping after this step ..."


@contextmanager
def open_view(config: GraftConfig, *, is_plain: bool = False) -> Iterator["PlainView | LiveView"]:
    """The live panel if stderr is a terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    console = Console(stderr=True)
    if is_plain or not console.is_terminal or console.is_dumb_terminal:
        yield PlainView(config)
        return
    view = LiveView(config, console)
    with view.live:
        yield view


class Watched:
    """The state that the events so far add up to."""

    def __init__(self, config: GraftConfig) -> None:
        self.config = config
        self.stage: CorpusProgress | None = None
        self.step: StepReport | None = None
        self.held_out: StepReport | None = None
        self.best: StepReport | None = None
        self.memory_bytes = 0
        self._recent: deque[StepReport] = deque(maxlen=RECENT_STEPS)
        self._stage_began: tuple[str, int, float] | None = None

    def take(self, event: "GraftEvent") -> None:
        from dspark.graft.data.corpus import CorpusProgress
        from dspark.graft.job import Validated
        from dspark.graft.train.out_of_memory import bytes_in_use
        from dspark.graft.train.trainer import StepReport

        if isinstance(event, CorpusProgress):
            if self._stage_began is None or self._stage_began[0] != event.stage:
                self._stage_began = (event.stage, event.done, time.monotonic())
            self.stage = event
        elif isinstance(event, StepReport):
            self.stage, self._stage_began = None, None
            self.step = event
            self._recent.append(event)
            self.memory_bytes = bytes_in_use()
        elif isinstance(event, Validated):
            self.held_out = event.report
            if self.best is None or event.report.tau > self.best.tau:
                self.best = event.report

    @property
    def seconds_per_step(self) -> float:
        return sum(report.seconds for report in self._recent) / max(1, len(self._recent))

    @property
    def tokens_per_second(self) -> float:
        seconds = sum(report.seconds for report in self._recent)
        return sum(report.tokens for report in self._recent) / seconds if seconds else 0.0

    @property
    def seconds_left(self) -> float:
        """Of the steps only."""
        done = self.step.step if self.step else 0
        return (self.config.steps - done) * self.seconds_per_step

    @property
    def stage_seconds_left(self) -> float | None:
        """None until the stage has made progress."""
        if self.stage is None or self._stage_began is None:
            return None
        _, first, began = self._stage_began
        done = self.stage.done - first
        elapsed = time.monotonic() - began
        return (self.stage.total - self.stage.done) * elapsed / done if done > 0 else None


class PlainView:
    """Plain lines; for steps and stages in progress, one every few seconds."""

    def __init__(self, config: GraftConfig) -> None:
        self._watched = Watched(config)
        self._told_at = 0.0

    def tell(self, event: "GraftEvent") -> None:
        self._watched.take(event)
        for line in lasting_lines(event, self._watched.config):
            say(line)
        if event is self._watched.stage or event is self._watched.step:
            self._seldom()

    def stopping(self) -> None:
        say(STOPPING)

    def _seldom(self) -> None:
        if time.monotonic() - self._told_at < SECONDS_BETWEEN_LINES:
            return
        self._told_at = time.monotonic()
        watched = self._watched
        if watched.stage is not None:
            say(f"{watched.stage.stage}{_counted(watched.stage, ': ')}")
        elif watched.step is not None:
            step = watched.step
            pace = (
                f"{step.seconds:.1f} s per step, about {duration_text(watched.seconds_left)} left"
            )
            say(f"step {step.step}/{watched.config.steps} ({pace}): {figures(step)}")


class LiveView:
    """A panel below the lasting lines; removed when the grafting ends."""

    def __init__(self, config: GraftConfig, console: Console) -> None:
        self._watched = Watched(config)
        self._is_stopping = False
        self._console = console
        self.live = Live(get_renderable=self.panel, console=console, transient=True)

    def tell(self, event: "GraftEvent") -> None:
        self._watched.take(event)
        for line in lasting_lines(event, self._watched.config):
            self.live.console.print(line, markup=False, highlight=False)

    def stopping(self) -> None:
        """Only sets a flag: the panel may be half drawn when a signal arrives."""
        self._is_stopping = True

    def panel(self) -> RenderableType:
        watched = self._watched
        if watched.stage is not None:
            title, content = watched.stage.stage, _stage(watched.stage, watched.stage_seconds_left)
        elif watched.step is not None:
            title = f"step {watched.step.step} of {watched.config.steps}"
            content = _training(watched, watched.step)
        else:
            title, content = "loading", "loading the model ..."
        hint = STOPPING if self._is_stopping else "Ctrl+C stops; re-run the command to resume"
        return Panel(
            content,
            title=title,
            subtitle=hint,
            title_align="left",
            subtitle_align="left",
            # the terminal's own ^C must not wrap, or the panel is drawn a line too low
            width=min(self._console.width - len("^C") - 1, WIDEST),
        )


def _stage(stage: "CorpusProgress", seconds_left: float | None) -> RenderableType:
    left = "" if seconds_left is None else f"about {duration_text(seconds_left)} left"
    return _progress(stage.done, stage.total, _counted(stage), left)


def _counted(stage: "CorpusProgress", before: str = "") -> str:
    """Empty for a stage with a single item."""
    return f"{before}{stage.done} of {stage.total}" if stage.total > 1 else ""


def _training(watched: Watched, step: "StepReport") -> RenderableType:
    pace = (
        f"{watched.seconds_per_step:.2f} s per step",
        f"{watched.tokens_per_second:,.0f} tokens/s",
        f"{watched.memory_bytes / 2**30:.1f} GiB",
        f"about {duration_text(watched.seconds_left)} left",
    )
    losses = (
        f"loss {step.loss:.3f}",
        f"CE {step.cross_entropy:.3f}",
        f"L1 {step.l1:.3f}",
        f"confidence {step.confidence:.3f}",
        f"expected τ {step.tau:.2f}",
    )
    renderables: list[RenderableType] = [
        _progress(step.step, watched.config.steps, " · ".join(pace)),
        " · ".join(losses),
        _acceptance(step, watched.held_out),
    ]
    return Group(*renderables, *_held_out(watched))


def _progress(done: int, total: int, *texts: str) -> RenderableType:
    row = Table.grid(padding=(0, 2))
    row.add_row(ProgressBar(total=max(1, total), completed=done, width=BAR_WIDTH), *texts)
    return row


def _acceptance(step: "StepReport", held_out: "StepReport | None") -> RenderableType:
    """A bar for each position in the block."""
    table = Table.grid(padding=(0, 2))
    others = held_out.acceptance_by_position if held_out else ()
    for place, rate in enumerate(step.acceptance_by_position):
        other = f"held out {others[place]:.2f}" if place < len(others) else ""
        bar = Bar(1.0, 0.0, rate, width=BAR_WIDTH, color="green")
        table.add_row(f"draft {place + 1}", bar, f"{rate:.2f}", other)
    return table


def _held_out(watched: Watched) -> list[RenderableType]:
    last, best = watched.held_out, watched.best
    if last is None or best is None:
        return []
    return [
        f"held out: τ {last.tau:.3f} at step {last.step}, best {best.tau:.3f} at step {best.step}"
    ]
