"""Marked text that grows: only rows that changed are drawn, and only new rows need a layout."""

from collections.abc import Sequence
from dataclasses import replace

from rich.segment import Segment
from textual.content import Content
from textual.events import Resize
from textual.geometry import Region, Size
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style

from dspark.chat.token_spans import Mark
from dspark_tui.token_styles import View, content_of
from dspark_tui.widgets.backdrop import Backdrop, filtered
from dspark_tui.widgets.rows import Row, Rows

_REFUSED = "\0"


class Section(Backdrop):
    """A stretch of thinking, or of answer."""

    DEFAULT_CSS = "Section { width: 1fr; height: auto; }"

    def __init__(self, view: View, is_thinking: bool = False) -> None:
        super().__init__()
        self.marks: list[Mark] = []
        self.view = view
        self.is_thinking = is_thinking
        self._rows = Rows(0)
        self._laid_out_width = 0
        self._look: tuple[Style, str] | None = None  # of the strips that are kept

    def add(self, marks: Sequence[Mark]) -> None:
        self.marks += marks
        rows = self._rows
        if not rows.width:
            self.refresh(layout=True)
            return
        height = len(rows)
        first = rows.append(content_of(marks, self.view))
        changed = Region(0, first, rows.width, len(rows) - first)
        self.refresh(changed, layout=len(rows) != height)

    def show(self, view: View) -> None:
        if view != self.view:
            self.view = view
            self._rows = Rows(0)
            self.refresh(layout=True)

    def on_resize(self, event: Resize) -> None:
        """Textual remembers heights for other widths from before rows changed without a layout."""
        if event.size.width != self._laid_out_width:
            self._laid_out_width = event.size.width
            self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self._wrapped(width)) if width else 0

    def _wrapped(self, width: int) -> Rows:
        if self._rows.width != width:
            self._rows = Rows(width)
            self._rows.append(content_of(self.marks, self.view))
        return self._rows

    def render_lines(self, crop: Region) -> list[Strip]:
        look = self.visual_style, self.app.theme
        rows = self._wrapped(self.size.width)
        if look != self._look:
            self._look = look
            rows.forget_strips()
        strips = [self.render_line(y) for y in crop.line_range]
        if crop.width == rows.width:
            return strips
        return [strip.crop(*crop.column_span) for strip in strips]

    def render_line(self, y: int) -> Strip:
        rows = self._rows
        if y >= len(rows):
            return Strip.blank(rows.width, self.visual_style.rich_style)
        row = rows.rows[y]
        if (selection := self.text_selection) and (span := selection.get_span(row.y)):
            return self._strip(self._selected(rows.shown(y), row, span), row)
        if row.strip is None:
            row.strip = self._strip(rows.shown(y), row)
        return row.strip

    def _strip(self, content: Content, row: Row) -> Strip:
        """Cells know their place in the text, so that the mouse can select it."""
        base, at = self.visual_style, row.x
        segments = []
        for text, style in content.render(base, end="", parse_style=_parsed):
            segments.append(Segment(text, (base + style).rich_style_with_offset(at, row.y)))
            at += len(text)
        strip = Strip(segments, content.cell_length)
        return filtered(self, strip.adjust_cell_length(self._rows.width, base.rich_style))

    def _selected(self, content: Content, row: Row, span: tuple[int, int]) -> Content:
        start, end = span
        style = Style.from_styles(self.screen.get_component_styles("screen--selection"))
        last = len(content) if end == -1 else end - row.x
        return content.stylize(style, max(start - row.x, 0), max(last, 0))

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """Copies only the answer, without rejected drafts."""
        blanked = (
            replace(mark, text=_REFUSED * len(mark.text)) if mark.kind == "rejected" else mark
            for mark in self.marks
        )
        text = content_of(blanked, self.view).plain
        return selection.extract(text).replace(_REFUSED, ""), "\n"


def _parsed(style: str | Style) -> Style:
    return Style.parse(style) if isinstance(style, str) else style
