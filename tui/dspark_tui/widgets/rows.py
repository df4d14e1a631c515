"""Growing text in rows of the terminal: what comes is wrapped with the last row alone, because the
rows before it cannot change any more."""

from dataclasses import dataclass

from rich._wrap import divide_line
from textual.content import Content
from textual.strip import Strip

TAB_CELLS = 8


@dataclass(slots=True)
class Row:
    """`x` characters of line `y` of the text stand before it."""

    content: Content
    x: int
    y: int
    strip: Strip | None = None  # once drawn


class Rows:
    def __init__(self, width: int) -> None:
        """`width` in cells."""
        self.width = width
        self.rows = [Row(Content(""), 0, 0)]
        self._column = 0  # of the cursor behind the last line, in cells

    def __len__(self) -> int:
        return len(self.rows)

    def append(self, content: Content) -> int:
        """Returns the first row that is different now."""
        first = len(self.rows) - 1
        for number, line in enumerate(content.split(allow_blank=True)):
            if number:
                self.rows.append(Row(Content(""), 0, self.rows[-1].y + 1))
                self._column = 0
            if line:
                self._lengthen(self._without_tabs(line))
        return first

    def _lengthen(self, content: Content) -> None:
        """Wraps the last row again, with what comes behind it."""
        last = self.rows.pop()
        whole = last.content + content
        starts = divide_line(whole.plain, self.width)
        for part, start in zip(whole.divide(starts), [0, *starts], strict=True):
            self.rows.append(Row(part, last.x + start, last.y))
        self._column += content.cell_length

    def _without_tabs(self, line: Content) -> Content:
        """Tabs as spaces, up to the stops of the whole line."""
        if "\t" not in line.plain:
            return line
        before = self._column % TAB_CELLS
        return (Content(" " * before) + line).expand_tabs(TAB_CELLS)[before:]

    def shown(self, number: int) -> Content:
        """The row as it fits: spaces at which a line is wrapped are not drawn."""
        row = self.rows[number]
        is_wrapped = number + 1 < len(self.rows) and self.rows[number + 1].y == row.y
        return (row.content.rstrip() if is_wrapped else row.content).truncate(self.width)

    def forget_strips(self) -> None:
        for row in self.rows:
            row.strip = None
