"""Marked text in blocks, of which only the last one changes while it streams."""

from collections.abc import Iterable
from dataclasses import replace

from textual.app import ComposeResult
from textual.containers import VerticalGroup
from textual.content import Content
from textual.selection import Selection
from textual.widgets import Static

from dspark.chat.token_spans import Mark
from dspark_tui import wording
from dspark_tui.token_styles import View, content_of

FULL_BLOCK_CHARACTERS = 800
_REFUSED = "\0"


class Block(Static):
    """Some lines of an answer. Closed lines are not rendered again until the view changes."""

    def __init__(self, view: View, is_thinking: bool = False) -> None:
        super().__init__(markup=False, classes="thinking" if is_thinking else None)
        self.marks: list[Mark] = []
        self.view = view
        self.is_thinking = is_thinking
        self._length = 0

    @property
    def is_full(self) -> bool:
        return self._length >= FULL_BLOCK_CHARACTERS

    def append(self, mark: Mark) -> None:
        self.marks.append(mark)
        self._length += len(mark.text)

    def show(self, view: View) -> None:
        self.view = view
        content = content_of(self.marks, view)
        self.update(content, layout=self._needs_room(content))

    def _needs_room(self, content: Content) -> bool:
        """Most rounds stay on their line, and a layout of the screen costs more than drawing it."""
        width, height = self.size
        return width == 0 or content.get_height({}, width) != height

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """Copies only the answer, without rejected drafts."""
        blanked = (
            replace(mark, text=_REFUSED * len(mark.text)) if mark.kind == "rejected" else mark
            for mark in self.marks
        )
        text = content_of(blanked, self.view).plain
        return selection.extract(text).replace(_REFUSED, ""), "\n"


class Spans(VerticalGroup):
    """Where each token came from, with thinking set apart."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view
        self._blocks = [Block(view)]
        self._parts: list[Static] = [*self._blocks]
        self._is_composed = False

    def compose(self) -> ComposeResult:
        self._is_composed = True
        yield from self._parts

    def add(self, marks: Iterable[Mark]) -> None:
        for mark in marks:
            self._add_one(mark)
        self._blocks[-1].show(self._view)

    def show(self, view: View) -> None:
        self._view = view
        for block in self._blocks:
            block.show(view)

    def _add_one(self, mark: Mark) -> None:
        block = self._blocks[-1]
        if mark.kind != "rejected" and mark.text and mark.is_thinking != block.is_thinking:
            self._begin_section(mark)
        elif not block.is_full or mark.kind == "rejected" or "\n" not in mark.text:
            block.append(mark)
        else:
            before, after = mark.text.split("\n", 1)
            block.append(replace(mark, text=before))
            self._begin_block(block.is_thinking).append(replace(mark, text=after))

    def _begin_section(self, mark: Mark) -> None:
        """Switches between thinking and answer; the style sheet spaces them."""
        text = mark.text.lstrip("\n")
        if not text:
            return
        if self._blocks[-1].is_thinking:
            self._blocks[-1].add_class("end")
        if mark.is_thinking:
            self._append(Static(wording.THINKING, classes="thinking label"))
        self._begin_block(mark.is_thinking).append(replace(mark, text=text))

    def _begin_block(self, is_thinking: bool) -> Block:
        self._blocks[-1].show(self._view)
        self._blocks.append(Block(self._view, is_thinking))
        self._append(self._blocks[-1])
        return self._blocks[-1]

    def _append(self, part: Static) -> None:
        self._parts.append(part)
        if self._is_composed:
            self.mount(part)

    @property
    def text(self) -> str:
        """The answer alone, without thinking and rejected drafts."""
        return "\n".join(
            "".join(mark.text for mark in block.marks if mark.kind != "rejected")
            for block in self._blocks
            if block.marks and not block.is_thinking
        )

    @property
    def is_empty(self) -> bool:
        return not any(block.marks for block in self._blocks)
