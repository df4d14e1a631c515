"""One answer: marked while it is written, Markdown once it has ended, and a line of figures."""

from collections.abc import Iterable

from textual.app import ComposeResult
from textual.containers import VerticalGroup
from textual.reactive import reactive
from textual.widgets import Static

from dspark.chat.conversation import Turn
from dspark.chat.token_spans import Mark, marks_of
from dspark_tui.token_styles import View
from dspark_tui.widgets.backdrop import Backdrop
from dspark_tui.widgets.rendered import Rendered
from dspark_tui.widgets.spans import Spans


class Answer(VerticalGroup, Backdrop):
    """The model's text, and a line of progress or figures. Either form of an ended answer is built
    when it is first shown."""

    view: reactive[View] = reactive(View(), init=False)
    note: reactive[str] = reactive("")

    def __init__(self, turn: Turn, view: View) -> None:
        super().__init__(classes="empty")
        self.set_reactive(Answer.view, view)
        self._turn = turn
        self._has_ended = turn.finished is not None
        self._spans: Spans | None = None
        self._rendered: Rendered | None = None
        self._note = Static(classes="note", markup=False)

    def compose(self) -> ComposeResult:
        yield self._note

    def on_mount(self) -> None:
        self._show()

    def add(self, marks: Iterable[Mark]) -> None:
        """More of an answer that is being written."""
        spans = self._spans_of_turn()
        spans.add(marks)
        self.set_class(spans.is_empty, "empty")

    def end(self) -> None:
        self._has_ended = True
        self._show()

    @property
    def is_empty(self) -> bool:
        return not self._turn.text and not self._turn.thinking

    def _show(self) -> None:
        is_rendered = self._has_ended and self.view.rendered
        self.set_class(self.is_empty, "empty")
        if is_rendered and self._rendered is None:
            self._rendered = Rendered(self._turn.thinking, self._turn.text)
            self.mount(self._rendered, before=self._note)
        if not is_rendered:
            self._spans_of_turn().show(self.view)
        if self._rendered is not None:
            self._rendered.display = is_rendered
        if self._spans is not None:
            self._spans.display = not is_rendered

    def _spans_of_turn(self) -> Spans:
        """With all that the turn holds, unless they are there already."""
        if self._spans is None:
            self._spans = Spans(self.view)
            self.mount(self._spans, before=self._note)
            if self._turn.opening:
                self._spans.add([Mark(self._turn.opening, "own")])
            if self._has_ended:
                self._spans.add(mark for event in self._turn.events for mark in marks_of(event))
        return self._spans

    def watch_view(self) -> None:
        self._show()

    def watch_note(self, note: str) -> None:
        self._note.update(note)
        self._note.display = bool(note)
