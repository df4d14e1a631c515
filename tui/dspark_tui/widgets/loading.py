"""Progress of fetching and loading a pair."""

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import ProgressBar, Static

from dspark.events import FetchProgress, LoadProgress
from dspark_tui.wording import capitalised

# From this many bytes on: unit, decimals, name; fine enough to see the download move.
UNITS = (
    (10**9, 10**9, 2, "GB"),
    (10**7, 10**6, 0, "MB"),
    (10**6, 10**6, 1, "MB"),
    (1000, 1000, 0, "kB"),
    (1, 1, 0, "bytes"),
)


class LoadingPanel(Horizontal):
    def compose(self) -> ComposeResult:
        yield Static("Starting", markup=False, classes="stage")
        yield ProgressBar(show_eta=False)

    def show(self, step: FetchProgress | LoadProgress) -> None:
        self.query_one(Static).update(describe(step))
        # A bar of one step would only jump; without a total it is animated.
        total = step.total if step.total and step.total > 1 else None
        bar = self.query_one(ProgressBar)
        bar.update(total=total, progress=step.done)
        bar.query_one("#percentage").visible = total is not None


def describe(step: FetchProgress | LoadProgress) -> str:
    if isinstance(step, LoadProgress):
        return capitalised(step.stage)
    if not step.total:
        return f"{step.name} · preparing"
    _, unit, digits, name = next(each for each in UNITS if step.total >= each[0])
    done, total = step.done / unit, step.total / unit
    return f"{step.name} · {done:.{digits}f} of {total:.{digits}f} {name}"
