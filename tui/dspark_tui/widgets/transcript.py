"""The conversation from top to bottom; follows its end until the user scrolls away."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalGroup, VerticalScroll
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Static

from dspark.chat.control_characters import visible
from dspark_tui import wording
from dspark_tui.widgets.backdrop import Backdrop
from dspark_tui.wording import capitalised

FOLDED_ROWS, FOLDED_CHARACTERS = 24, 2000


class UserMessage(Static):
    """A prompt as it was sent. `short` names its files and pastes instead; what is long is folded
    besides, and a click unfolds both. `version`: which of how many versions it is."""

    version: reactive[tuple[int, int]] = reactive((1, 1), init=False)

    def __init__(self, text: str, short: str = "") -> None:
        self._text, self._short = visible(text), visible(short or text)
        self._is_foldable = self._short != self._text or _is_long(self._text)
        self._is_folded = self._is_foldable
        super().__init__(self._content(), markup=False)

    def _content(self) -> Content:
        if not self._is_folded:
            return Content(self._text)
        lines = self._short.split("\n")
        if not _is_long(self._short):
            return Content(self._short)
        shown = "\n".join(lines[: FOLDED_ROWS // 2])[: FOLDED_CHARACTERS // 2]
        folded = wording.folded(len(self._short), len(lines))
        return Content.assemble(shown, (f"\n… {folded}", "$foreground-muted"))

    def on_click(self) -> None:
        if self._is_foldable and not self.screen.get_selected_text():
            self._is_folded = not self._is_folded
            self.update(self._content())

    def watch_version(self, version: tuple[int, int]) -> None:
        at, count = version
        self.border_subtitle = f"‹ {at}/{count} ›" if count > 1 else ""
        self.set_class(count > 1, "versions")


def _is_long(text: str) -> bool:
    return text.count("\n") >= FOLDED_ROWS or len(text) > FOLDED_CHARACTERS


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


class Turns(VerticalGroup, Backdrop):
    """At least as high as the view: Textual anchors shorter content to the bottom."""

    DEFAULT_CSS = "Turns { min-height: 100%; }"

    def compose(self) -> ComposeResult:
        yield Welcome()


class Transcript(VerticalScroll, Backdrop, can_focus=True, inherit_bindings=False):
    """Shows one conversation and can set another one aside. It has the keyboard while a message is
    chosen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "screen.choose(-1)", "Before", show=False),
        Binding("down,j", "screen.choose(1)", "After", show=False),
        Binding("enter,e", "screen.edit_chosen", "Edit", show=False),
        Binding("r", "screen.regenerate_chosen", "Regenerate", show=False),
        Binding("f", "screen.fork_chosen", "Fork", show=False),
        Binding("c", "screen.copy_answer", "Copy", show=False),
        *(Binding(f"{n}", f"screen.copy_code({n})", "Copy code", show=False) for n in range(1, 10)),
        Binding("left", "screen.version(-1)", "Version before", show=False),
        Binding("right", "screen.version(1)", "Version after", show=False),
        Binding("escape", "screen.leave_choice", "Back", show=False),
    ]
    FOCUS_ON_CLICK = False

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
