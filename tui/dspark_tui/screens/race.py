"""F3: two ways to write one answer, side by side on one clock."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from dspark.chat.race_view import Lane, verdict
from dspark.chat.token_spans import Mark
from dspark.errors import DSparkError
from dspark_tui import wording
from dspark_tui.race_run import RaceRun
from dspark_tui.token_styles import View, content_of
from dspark_tui.widgets.legend import legend

FRAME_SECONDS = 1 / 15


class RaceScreen(ModalScreen[None]):
    """Drawn between the steps, by another thread than theirs: what it takes slows both alike."""

    CSS_PATH = "race.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f3,q,ctrl+c", "dismiss", "Back", show=False, priority=True)
    ]

    def __init__(self, run: RaceRun, view: View) -> None:
        super().__init__()
        self._run, self._view = run, view
        self._lanes = [Lane(name) for name in run.names]
        self._marks: list[list[Mark]] = [[] for _ in run.names]
        self._is_over = False

    def compose(self) -> ComposeResult:
        with Vertical(id="race") as panel:
            panel.border_title = "Race"
            panel.border_subtitle = "Esc goes back to the chat"
            with Horizontal(id="lanes"):
                for lane in self._lanes:
                    with VerticalScroll(classes="lane") as column:
                        column.border_title = lane.name
                        yield Static(classes="text", markup=False)
            yield Static(legend(self._view, is_short=False), id="marks")
            yield Static(id="verdict", markup=False)

    def on_mount(self) -> None:
        for column in self.query(".lane"):
            column.anchor()
        self.set_interval(FRAME_SECONDS, self._follow)

    def on_unmount(self) -> None:
        self._run.leave()

    def _follow(self) -> None:
        if self._is_over:
            return
        outcome = self._run.outcome  # before its last steps are taken
        steps = self._run.new_steps()
        for step in steps:
            self._marks[step.runner] += self._lanes[step.runner].take(step)
        for at in {step.runner for step in steps}:
            column = self.query(".lane").nodes[at]
            column.border_subtitle = self._lanes[at].figures
            column.query_one(Static).update(content_of(self._marks[at], self._view))
        if outcome is not None:
            self._is_over = True
            is_error = isinstance(outcome, DSparkError)
            words = wording.in_one_line(outcome) if is_error else verdict(outcome)  # type: ignore[arg-type]
            self.query_one("#verdict", Static).update(words)
