"""Where a prompt is typed: Enter sends, Shift+Enter or Ctrl+J starts a new line."""

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea


class PromptBox(TextArea):
    ALLOW_MAXIMIZE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("shift+enter,ctrl+j", "new_line", "New line", show=False)
    ]

    @dataclass
    class Submitted(Message):
        """The text stays in the box until whoever takes it calls `clear`."""

        text: str

    def __init__(self) -> None:
        super().__init__(show_line_numbers=False, compact=True, highlight_cursor_line=False)

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            event.prevent_default().stop()
            self.post_message(self.Submitted(self.text.strip()))
            return
        await super()._on_key(event)

    def action_new_line(self) -> None:
        self.insert("\n")

    def put(self, text: str) -> None:
        """Show this text with the cursor at its end."""
        self.text = text
        self.move_cursor(self.document.end)
