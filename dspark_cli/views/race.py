"""A race in the terminal: a column for each runner, and a verdict."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dspark.bench.race import RaceResult, RaceStep
from dspark.chat.race_view import Lane
from dspark.chat.token_spans import LEGEND, Kind
from dspark_cli.output.answer import stats_line

STYLES: dict[Kind, str] = {"accepted": "blue underline", "own": "", "rejected": "red strike"}
FRAME_SECONDS = 1 / 20
FRAME_ROWS, FRAME_COLUMNS = 5, 4  # of a panel, and the legend and the cursor below it


@dataclass
class Column:
    """What one runner has written so far."""

    lane: Lane
    text: Text = field(default_factory=Text)

    def take(self, step: RaceStep) -> None:
        for mark in self.lane.take(step):
            style = f"{STYLES[mark.kind]} dim" if mark.is_thinking else STYLES[mark.kind]
            self.text.append(mark.text, style)


class RaceView:
    """Draws between the steps, which no runner's clock sees."""

    def __init__(self, names: Sequence[str], console: Console) -> None:
        self.columns = [Column(Lane(name)) for name in names]
        self._console = console
        self.live = Live(console=console, auto_refresh=False)
        self._next_frame = 0.0

    def take(self, step: RaceStep) -> None:
        self.columns[step.runner].take(step)
        if monotonic() >= self._next_frame:
            self.draw()

    def draw(self) -> None:
        table = Table.grid(expand=True)
        for _ in self.columns:
            table.add_column(ratio=1)
        texts = [self._last_lines(column) for column in self.columns]
        height = max(len(lines) for lines in texts)
        pairs = zip(self.columns, texts, strict=True)
        table.add_row(*(_panel(column, lines, height) for column, lines in pairs))
        self.live.update(Group(table, legend()), refresh=True)
        self._next_frame = monotonic() + FRAME_SECONDS

    def _last_lines(self, column: Column) -> list[Text]:
        """Those that fit."""
        width = self._console.width // len(self.columns) - FRAME_COLUMNS
        height = self._console.height - FRAME_ROWS
        return list(column.text.wrap(self._console, max(1, width)))[-max(1, height) :]


def legend() -> Text:
    """Each word in the style it explains."""
    words = [((at_length, STYLES[kind]), "  ") for kind, (at_length, _) in LEGEND.items()]
    return Text.assemble(*(part for pair in words for part in pair))


def _panel(column: Column, lines: Sequence[Text], height: int) -> Panel:
    return Panel(
        Text("\n").join(lines),
        title=column.lane.name,
        title_align="left",
        subtitle=column.lane.figures,
        height=height + 2,
    )


@contextmanager
def race_view(
    names: Sequence[str], *, is_shown: bool = True
) -> Iterator[Callable[[RaceStep], None]]:
    """Takes each step; shows nothing where stdout is not a terminal."""
    console = Console(highlight=False)
    if not is_shown or not console.is_terminal or console.is_dumb_terminal:
        yield lambda step: None
        return
    view = RaceView(names, console)
    with view.live:
        yield view.take
        view.draw()


def lap_lines(result: RaceResult) -> list[str]:
    return [
        f"{lap.name}: {stats_line(lap.finished.stats, rate=lap.tokens_per_second)} · "
        f"{lap.seconds:.2f} s"
        for lap in result.laps
    ]
