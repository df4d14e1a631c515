"""Marked text in sections of thinking and of answer; only the last one grows."""

from collections.abc import Iterable
from dataclasses import replace

from textual.app import ComposeResult
from textual.containers import VerticalGroup
from textual.widget import Widget
from textual.widgets import Static

from dspark.chat.token_spans import Mark
from dspark_tui import wording
from dspark_tui.token_styles import View
from dspark_tui.widgets.backdrop import Backdrop
from dspark_tui.widgets.section import Section


class Spans(VerticalGroup, Backdrop):
    """Where each token came from, with thinking set apart."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view
        self._sections = [Section(view)]
        self._parts: list[Widget] = [*self._sections]
        self._is_composed = False

    def compose(self) -> ComposeResult:
        self._is_composed = True
        yield from self._parts

    def add(self, marks: Iterable[Mark]) -> None:
        """Marks of one section are handed over together."""
        together: list[Mark] = []
        for mark in marks:
            if self._begins_section(mark):
                self._sections[-1].add(together)
                together = self._begin_section(mark)
            else:
                together.append(mark)
        self._sections[-1].add(together)

    def show(self, view: View) -> None:
        self._view = view
        for section in self._sections:
            section.show(view)

    def _begins_section(self, mark: Mark) -> bool:
        """A refused draft stays in its section."""
        is_told = mark.kind != "rejected" and bool(mark.text)
        return is_told and mark.is_thinking != self._sections[-1].is_thinking

    def _begin_section(self, mark: Mark) -> list[Mark]:
        """Returns what stands at its beginning; the style sheet spaces sections."""
        text = mark.text.lstrip("\n")
        if not text:
            return []
        if self._sections[-1].is_thinking:
            self._parts[-1].add_class("end")
        section = Section(self._view, mark.is_thinking)
        self._sections.append(section)
        if mark.is_thinking:
            self._append(Static(wording.THINKING, classes="thinking label"))
            self._append(VerticalGroup(section, classes="thinking"))
        else:
            self._append(section)
        return [replace(mark, text=text)]

    def _append(self, part: Widget) -> None:
        self._parts.append(part)
        if self._is_composed:
            self.mount(part)

    @property
    def text(self) -> str:
        """The answer alone, without thinking and rejected drafts."""
        return "\n".join(
            "".join(mark.text for mark in section.marks if mark.kind != "rejected")
            for section in self._sections
            if section.marks and not section.is_thinking
        )

    @property
    def is_empty(self) -> bool:
        return not any(section.marks for section in self._sections)
