"""How far fetching and loading a pair have come."""

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import ProgressBar, Static

from dspark.events import FetchProgress, LoadProgress
from dspark_tui.texts import capitalised

MEGABYTE = 1_000_000


class LoadingPanel(Horizontal):
    def compose(self) -> ComposeResult:
        yield Static("Starting", markup=False, classes="stage")
        yield ProgressBar(show_eta=False)

    def show(self, step: FetchProgress | LoadProgress) -> None:
        self.query_one(Static).update(describe(step))
        # A bar of one step would only jump; without a total it moves by itself.
        total = step.total if step.total and step.total > 1 else None
        bar = self.query_one(ProgressBar)
        bar.update(total=total, progress=step.done)
        bar.query_one("#percentage").visible = total is not None


def describe(step: FetchProgress | LoadProgress) -> str:
    if isinstance(step, LoadProgress):
        return capitalised(step.stage)
    if step.total is None:
        return f"{step.name} · preparing"
    return f"{step.name} · {step.done / MEGABYTE:.0f} of {step.total / MEGABYTE:.0f} MB"
