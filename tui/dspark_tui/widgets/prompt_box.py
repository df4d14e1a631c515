"""The input box: Enter sends, Shift+Enter or Ctrl+J starts a new line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from dspark_tui.folds import Pastes


class PromptBox(TextArea):
    ALLOW_MAXIMIZE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("shift+enter,ctrl+j", "new_line", "New line", show=False)
    ]

    @dataclass
    class Submitted(Message):
        """The text as it stands in the box, until the receiver calls `clear`."""

        text: str

    class Left(Message):
        """Ctrl+D in an empty box, the end of input."""

    class TakenBack(Message):
        """Up, on the first line."""

    @dataclass
    class CompletionMoved(Message):
        """Up (-1) or Down, while completions are offered."""

        by: int

    class CompletionTaken(Message):
        """Tab, while completions are offered."""

    def __init__(self) -> None:
        super().__init__(show_line_numbers=False, compact=True, highlight_cursor_line=False)
        self.pastes = Pastes()
        self.offers = False  # completions are shown
        self._earlier: list[str] = []
        self._place: int | None = None  # of the earlier prompt that is shown

    def remember(self, *prompts: str) -> None:
        """Prompts to walk through with the arrows, the newest last."""
        prompts = tuple(map(self.pastes.typed, prompts))
        self._earlier = [each for each in self._earlier if each not in prompts]
        self._earlier += prompts
        self._place = None

    def recall(self, by: int) -> None:
        """The earlier prompt before (-1) or after the one that is shown."""
        at = len(self._earlier) if self._place is None else self._place
        if at + by >= len(self._earlier):
            self._place = None
            self.clear()
        else:
            self._place = max(at + by, 0)
            self.put(self._earlier[self._place])

    @property
    def is_recalled(self) -> bool:
        """Whether the box shows an earlier prompt as it was."""
        return self._place is not None and self.text == self._earlier[self._place]

    @property
    def before_cursor(self) -> str:
        return self.get_text_range((0, 0), self.cursor_location)

    def complete(self, text: str, replaced: int) -> None:
        """Puts it in place of so many characters before the cursor, all in one line."""
        row, column = self.cursor_location
        self.replace(text, (row, column - replaced), (row, column), maintain_selection_offset=False)

    async def _on_key(self, event: events.Key) -> None:
        if self._walks(event.key):
            event.prevent_default().stop()
            self.recall(-1 if event.key == "up" else 1)
            return
        if (message := self._message_of(event.key)) is not None:
            event.prevent_default().stop()
            self.post_message(message)
            return
        await super()._on_key(event)

    def _walks(self, key: str) -> bool:
        """Up on the first line and Down on the last one of an earlier prompt."""
        row = self.cursor_location[0]
        edge = {"up": 0, "down": self.document.line_count - 1}.get(key)
        return self.is_recalled and row == edge

    def _message_of(self, key: str) -> Message | None:
        if self.offers and key in COMPLETION_KEYS:
            return COMPLETION_KEYS[key]()
        if key == "enter":
            return self.Submitted(self.text.strip())
        if self.text:
            return None
        return {"ctrl+d": self.Left, "up": self.TakenBack}.get(key, lambda: None)()

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default().stop()
        await super()._on_paste(events.Paste(self.pastes.folded_paste(event.text)))

    def action_delete_left(self) -> None:
        """What stands for a paste goes as a whole."""
        row, column = self.cursor_location
        marker = self.pastes.marker_before(self.document.get_line(row)[:column])
        if marker and self.selection.is_empty:
            self.delete((row, column - len(marker)), (row, column), maintain_selection_offset=False)
        else:
            super().action_delete_left()

    def action_new_line(self) -> None:
        self.insert("\n")

    def put_prompt(self, prompt: str) -> None:
        """As `put`; a prompt that was sent stands as it was written."""
        self.put(self.pastes.typed(prompt))

    def put(self, text: str) -> None:
        """Show this text with the cursor at its end."""
        self.text = text
        self.move_cursor(self.document.end)

    def put_before(self, prompt: str) -> None:
        """As `put_prompt`, above the text already typed."""
        text = self.pastes.typed(prompt)
        self.put(f"{text}\n{self.text}" if self.text else text)

    def replace_all(self, text: str) -> None:
        """As `put`, but Ctrl+Z brings back what was there."""
        self.replace(text, (0, 0), self.document.end)
        self.move_cursor(self.document.end)

    def wipe(self) -> None:
        """As `clear`, but Ctrl+Z brings it back."""
        self.delete((0, 0), self.document.end)


COMPLETION_KEYS: Mapping[str, Callable[[], Message]] = {
    "tab": PromptBox.CompletionTaken,
    "up": partial(PromptBox.CompletionMoved, -1),
    "down": partial(PromptBox.CompletionMoved, 1),
}
