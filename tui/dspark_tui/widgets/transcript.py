"""The conversation from top to bottom; follows its end until the user scrolls away."""

from textual.app import ComposeResult
from textual.containers import VerticalGroup, VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from dspark.chat.control_characters import visible
from dspark_tui.wording import capitalised


class UserMessage(Static):
    """A prompt as it was sent."""

    def __init__(self, text: str) -> None:
        super().__init__(visible(text), markup=False)


class Notice(Static):
    """An error and its hint."""

    def __init__(self, message: str, hint: str) -> None:
        spans = [("✗ ", "$text-error bold"), (visible(capitalised(message)), "$text-error")]
        if hint:
            spans.append((f"\n{hint}", "$foreground-muted"))
        super().__init__(Content.assemble(*spans))


class Remark(Static):
    """A note about the conversation."""

    def __init__(self, text: str) -> None:
        super().__init__(text, markup=False)


class Welcome(Static):
    """The content of an empty chat."""


class Turns(VerticalGroup):
    """At least as high as the view: Textual anchors shorter content to the bottom."""

    DEFAULT_CSS = "Turns { min-height: 100%; }"

    def compose(self) -> ComposeResult:
        yield Welcome()


class Transcript(VerticalScroll, can_focus=False):
    """Shows one conversation and can set another one aside."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = Turns()
        self._aside: Turns | None = None
        self._welcome = Content("")

    def compose(self) -> ComposeResult:
        yield self._shown

    def on_mount(self) -> None:
        self.anchor()

    def welcome(self, content: Content) -> None:
        self._welcome = content
        for each in self.query(Welcome):
            each.update(content)

    @property
    def is_empty(self) -> bool:
        return len(self._shown.children) == 1

    async def add(self, *widgets: Widget, before: Widget | None = None) -> None:
        """Scrolls to new content."""
        self._shown.query_one(Welcome).display = False
        await self._shown.mount(*widgets, before=before)
        self.anchor()

    async def take_away(self, *widgets: Widget) -> None:
        for widget in widgets:
            await widget.remove()
        self._shown.query_one(Welcome).display = self.is_empty

    async def begin(self, *, keeps_this: bool) -> None:
        """Starts an empty conversation; the one shown is set aside, or dropped."""
        old, self._shown = self._shown, Turns()
        gone: Turns | None = old
        if keeps_this:
            gone, self._aside = self._aside, old
            old.display = False
        await self.mount(self._shown)
        self._shown.query_one(Welcome).update(self._welcome)
        if gone is not None:
            await gone.remove()
        self.anchor()

    async def bring_back(self) -> None:
        """Brings back the conversation set aside, in place of the empty one."""
        assert self._aside is not None, "only what was set aside comes back"
        empty, self._shown, self._aside = self._shown, self._aside, None
        self._shown.display = True
        await empty.remove()
        self.anchor()
