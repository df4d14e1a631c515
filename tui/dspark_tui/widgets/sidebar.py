"""The stored chats: a list to choose from, searched by words in any prompt or answer."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from dspark.chat.control_characters import one_line, visible
from dspark.chat.sessions.store import ChatStore
from dspark_tui import wording
from dspark_tui.widgets.key_line import OF_A_TITLE, OF_THE_SIDEBAR, UNDO, Key

MINUTE, HOUR, DAY = 60, 3600, 86400


class Sidebar(Vertical):
    """Hidden until `open`; what happens to a chat is the screen's affair."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close", show=False),
        Binding("delete", "delete", "Delete", show=False),
        Binding("f2", "rename", "Rename", show=False),
        Binding("ctrl+z", "restore", "Undo", show=False),
        Binding("down", "go_down", "Down", show=False),
    ]

    @dataclass
    class Chosen(Message):
        chat: int

    @dataclass
    class Renamed(Message):
        chat: int
        title: str

    @dataclass
    class Deleted(Message):
        chat: int

    @dataclass
    class Restored(Message):
        chat: int

    class KeysChanged(Message):
        """Keys do something else now."""

    class Closed(Message):
        """The keyboard goes back to the prompt."""

    def __init__(self, store: ChatStore) -> None:
        super().__init__()
        self.display = False
        self._store = store
        self._shown: int | None = None
        self._renaming: int | None = None
        self._deleted: list[int] = []

    def compose(self) -> ComposeResult:
        yield Input(placeholder=wording.SEARCH, compact=True, select_on_focus=False)
        yield OptionList(compact=True, markup=False)

    def open(self, shown: int | None) -> None:
        """`shown`: the chat on the screen."""
        self._shown = shown
        self.display = True
        self._stop_renaming()
        self.query_one(Input).focus()

    def search_for(self, words: str) -> None:
        self.query_one(Input).value = words

    def refresh_list(self) -> None:
        words = self.query_one(Input).value if self._renaming is None else ""
        options = self._found(words) if words.strip() else self._all()
        chooser = self.query_one(OptionList)
        chooser.clear_options()
        chooser.add_options(options or [Option(wording.NO_CHATS, disabled=True)])
        ids = [option.id for option in options]
        chooser.highlighted = ids.index(str(self._shown)) if str(self._shown) in ids else 0

    def _all(self) -> list[Option]:
        return [
            Option(_entry(each.title, f"{_age(each.updated)} · {each.model}"), id=str(each.id))
            for each in self._store.chats()
        ]

    def _found(self, words: str) -> list[Option]:
        return [
            Option(_entry(each.title, each.passage), id=str(each.chat))
            for each in self._store.search(words)
        ]

    @property
    def _chosen(self) -> int | None:
        chooser = self.query_one(OptionList)
        if chooser.highlighted is None:
            return None
        name = chooser.get_option_at_index(chooser.highlighted).id
        return int(name) if name else None

    @on(Input.Changed)
    def search(self) -> None:
        if self._renaming is None:
            self.refresh_list()

    @on(Input.Submitted)
    def take_line(self, message: Input.Submitted) -> None:
        if self._renaming is not None:
            self.post_message(self.Renamed(self._renaming, message.value))
            self._stop_renaming()
        else:
            self._post(self.Chosen)

    @on(OptionList.OptionSelected)
    def choose(self) -> None:
        self._post(self.Chosen)

    def action_go_down(self) -> None:
        self.query_one(OptionList).focus()

    @property
    def keys(self) -> tuple[Key, ...]:
        """What its keys do now; none while it has no keyboard."""
        if not (self.display and self.has_focus_within):
            return ()
        if self._renaming is not None:
            return OF_A_TITLE
        return (*OF_THE_SIDEBAR, *((UNDO,) if self._deleted else ()))

    async def action_take(self) -> None:
        """As Enter."""
        if self._renaming is not None:
            await self.query_one(Input).action_submit()
        else:
            self._post(self.Chosen)

    def action_delete(self) -> None:
        if (chat := self._chosen) is not None:
            self._deleted.append(chat)
            self.post_message(self.KeysChanged())
            self.post_message(self.Deleted(chat))

    def action_restore(self) -> None:
        if self._deleted:
            self.post_message(self.Restored(self._deleted.pop()))
            self.post_message(self.KeysChanged())

    def action_rename(self) -> None:
        if (chat := self._chosen) is None:
            return
        self._renaming = chat
        line = self.query_one(Input)
        titles = {each.id: each.title for each in self._store.chats()}
        line.placeholder, line.value = wording.NEW_TITLE, titles.get(chat, "")
        line.focus()
        self.post_message(self.KeysChanged())

    def action_close(self) -> None:
        if self._renaming is not None:
            self._stop_renaming()
        else:
            self.post_message(self.Closed())

    def _stop_renaming(self) -> None:
        self._renaming = None
        self.post_message(self.KeysChanged())
        line = self.query_one(Input)
        line.placeholder, line.value = wording.SEARCH, ""
        self.refresh_list()

    def _post(self, message: Callable[[int], Message]) -> None:
        if (chat := self._chosen) is not None:
            self.post_message(message(chat))


def _entry(title: str, below: str) -> Content:
    """Two lines, with what was searched for in bold."""
    spans = [(one_line(title), "bold"), ("\n", "")]
    for number, part in enumerate(below.replace("\x03", "\x02").split("\x02")):
        spans.append((visible(part), FOUND if number % 2 else MUTED))
    return Content.assemble(*spans)


FOUND, MUTED = "$text-accent bold", "$foreground-muted"


def _age(then: float) -> str:
    seconds = time.time() - then
    if seconds < DAY:
        hours = f"{seconds / HOUR:.0f} h ago"
        return "now" if seconds < MINUTE else _minutes(seconds) if seconds < HOUR else hours
    return time.strftime("%d %b %Y", time.localtime(then))


def _minutes(seconds: float) -> str:
    return f"{seconds / MINUTE:.0f} min ago"
