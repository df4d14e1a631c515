"""The conversation from top to bottom; follows its end until the reader scrolls away."""

from textual.app import ComposeResult
from textual.containers import VerticalGroup, VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from dspark_tui.texts import capitalised


class UserMessage(Static):
    """A prompt as it was sent."""

    def __init__(self, text: str) -> None:
        super().__init__(text, markup=False)


class Notice(Static):
    """Something that went wrong: what happened and what to do."""

    def __init__(self, message: str, hint: str) -> None:
        parts = [("✗ ", "$text-error bold"), (capitalised(message), "$text-error")]
        if hint:
            parts.append((f"\n{hint}", "$foreground-muted"))
        super().__init__(Content.assemble(*parts))


class Welcome(Static):
    """What an empty chat shows."""


class Turns(VerticalGroup):
    """At least as high as the view: Textual anchors shorter content to the bottom."""

    DEFAULT_CSS = "Turns { min-height: 100%; }"


class Transcript(VerticalScroll, can_focus=False):
    def compose(self) -> ComposeResult:
        with Turns():
            yield Welcome()

    def on_mount(self) -> None:
        self.anchor()

    def welcome(self, content: Content) -> None:
        self.query_one(Welcome).update(content)

    async def add(self, *widgets: Widget) -> None:
        """Whoever adds something wants to see it."""
        self.query_one(Welcome).display = False
        await self.query_one(Turns).mount(*widgets)
        self.anchor()

    async def take_away(self, *widgets: Widget) -> None:
        turns = self.query_one(Turns)
        await turns.remove_children(widgets)
        self.query_one(Welcome).display = len(turns.children) == 1

    async def clear(self) -> None:
        await self.take_away(*self.query_one(Turns).children[1:])
