"""The Textual application: themes, screens and the commands of the palette."""

import sqlite3
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal

import psutil
from textual import constants
from textual.app import App, SystemCommand
from textual.command import CommandPalette
from textual.content import Content
from textual.screen import Screen

from dspark.atomic import replacing
from dspark.chat.backend import ChatBackend, ChatSettings, OtherModels
from dspark.chat.sessions.store import ChatStore
from dspark_tui import wording
from dspark_tui.garbage import Garbage
from dspark_tui.screens.chat import ChatScreen
from dspark_tui.screens.help import HelpScreen
from dspark_tui.themes import DARK, LIGHT, theme_for_terminal
from dspark_tui.token_styles import View
from dspark_tui.widgets.status_bar import Hint

TEXTUAL_OWN_DEFAULT_THEME = "textual-dark"
WIDTHS: list[tuple[int, str]] = [(0, "-narrow"), (60, "-wide")]
HEIGHTS: list[tuple[int, str]] = [(0, "-short"), (14, "-tall")]


class DSparkApp(App[None]):
    TITLE = "dspark"
    HORIZONTAL_BREAKPOINTS = WIDTHS
    VERTICAL_BREAKPOINTS = HEIGHTS
    FIRST_VIEW = View()

    def __init__(
        self,
        backend: ChatBackend,
        settings: ChatSettings,
        store: ChatStore | None = None,
        first_chat: int | None = None,
        models: OtherModels | None = None,
    ) -> None:
        """Without a store, chats end with the program; `first_chat` of the store is shown."""
        super().__init__()
        self.backend = backend
        self.settings = settings
        self.store = store or ChatStore()
        self._first_chat = first_chat
        self.models = models
        self.garbage = Garbage()
        self.farewell = ""  # said once the terminal is as it was
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        # TEXTUAL_THEME overrides it.
        if constants.DEFAULT_THEME == TEXTUAL_OWN_DEFAULT_THEME:
            self.theme = theme_for_terminal().name

    def on_mount(self) -> None:
        self.chat = ChatScreen(
            self.backend,
            self.settings,
            self.store,
            self._first_chat,
            self.models,
            self.garbage,
        )
        self.chat.view = self.FIRST_VIEW
        self.push_screen(self.chat)

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: Literal["information", "warning", "error"] = "information",
        timeout: float | None = None,
        markup: bool = True,
    ) -> None:
        """Shows notices in the status line instead of Textual's boxes over the text."""
        text = Content.from_markup(message).plain if markup else message
        self.chat.say(Hint(text, is_error=severity == "error"))

    def action_help_quit(self) -> None:
        """Textual calls this for Ctrl+C, unless there is a selection to copy."""
        self.chat.interrupt()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        if isinstance(screen, ChatScreen):
            yield from chat_commands(screen)
            yield SystemCommand("Light or dark", "Change to the other palette", self.action_flip)
            yield SystemCommand("Save screenshot", "As SVG, in this folder", self.action_save)
            yield SystemCommand("Help", "Marks, figures, keys and commands", self.action_help)
        yield SystemCommand("Quit", "The chat stays stored", self.action_quit)

    def action_command_palette(self) -> None:
        """As Textual's, which greets in other words."""
        if not any(isinstance(screen, CommandPalette) for screen in self.screen_stack):
            self.push_screen(
                CommandPalette(placeholder=wording.SEARCH_COMMANDS, id="--command-palette")
            )

    def action_help(self) -> None:
        self.push_screen(HelpScreen())

    def action_save(self) -> None:
        # The palette must close first, so that it is not in the picture.
        self.set_timer(0.2, self._save_screenshot)

    def _save_screenshot(self) -> None:
        """Textual's command needs a downloads folder, which many machines do not have."""
        path = Path(f"dspark-{datetime.now():%Y-%m-%d-%H%M%S}.svg")
        try:
            with replacing(path) as partial:
                partial.write_text(self.export_screenshot(), encoding="utf-8")
        except OSError as error:
            self.chat.say(Hint(f"{path} could not be written: {error.strerror}.", is_error=True))
        else:
            self.chat.say(Hint(f"Saved {path}."))

    def action_flip(self) -> None:
        self.theme = LIGHT.name if self.current_theme.dark else DARK.name


def chat_commands(chat: ChatScreen) -> Iterable[SystemCommand]:
    rejected = "Hide rejected drafts" if chat.view.show_rejected else "Show rejected drafts"
    shading = "Colour by origin" if chat.view.shading else "Shade by confidence"
    rendered = "Show the marks" if chat.view.rendered else "Render Markdown"
    yield SystemCommand("New chat", "This one is set aside", chat.action_new_chat)
    yield SystemCommand("Chats", "All chats; open, search, rename, delete", chat.action_sidebar)
    yield SystemCommand("Choose a message", "To edit, fork or copy", lambda: chat.action_choose(-1))
    yield SystemCommand(rendered, "Of answers that have ended", chat.action_toggle_rendered)
    yield SystemCommand(rejected, "Drafts that the model refused", chat.action_toggle_rejected)
    yield SystemCommand(shading, "How drafts are marked", chat.action_toggle_shading)
    yield SystemCommand("Inspect rounds", "Drafts, verdicts and times", chat.action_inspect_rounds)
    yield SystemCommand("Open the editor", "$EDITOR, for a long prompt", chat.action_open_editor)
    yield SystemCommand("Race", "Plain decoding beside the drafter", chat.action_race)
    yield SystemCommand("Copy last answer", "As plain text, without marks", chat.action_copy_answer)
    if chat.phase == "answering":
        yield SystemCommand("Stop the answer", "Keep what was written", chat.action_stop)
    for name in chat.models.names() if chat.models else ():
        change = partial(chat.run_worker_for_model, name)
        yield SystemCommand(f"Model: {name}", "The chat goes on with it", change)


def farewell(chat: ChatScreen) -> str:
    """Where the chat that was on the screen last is, and how to come back to it."""
    aside = [chat.aside[0]] if chat.aside else []
    begun = [each for each in (chat.conversation, *aside) if each.saved_id is not None]
    stored = {each.id: each for each in chat.store.chats()}
    shown = [stored[each.saved_id] for each in begun if each.saved_id in stored]
    if not shown or not shown[0].num_turns:
        return ""
    if chat.store.path is None:
        return wording.NOT_STORED
    is_last = shown[0].id == next(iter(stored))
    return wording.farewell(shown[0].title, chat.store.path, None if is_last else shown[0].id)


def run_chat(
    backend: ChatBackend,
    settings: ChatSettings,
    store: ChatStore | None = None,
    first_chat: int | None = None,
    models: OtherModels | None = None,
) -> int:
    """Runs until the user quits; returns the exit code. A thread may still be running: it is a
    daemon, and the process may end without waiting for it."""
    app = DSparkApp(backend, settings, store, first_chat, models)
    code = run_app(app)
    if app.farewell and not app.is_web:
        print(app.farewell, file=sys.stderr)
    return code


def run_app(app: DSparkApp) -> int:
    """As `run_chat`."""
    app.garbage.is_on = True
    app.run()
    app.chat.worker.backend.cancel()
    with suppress(sqlite3.Error):
        app.farewell = farewell(app.chat)
    app.store.close()
    for child in psutil.Process().children():  # pip, if it is downloading
        with suppress(psutil.Error):
            child.terminate()
    return app.return_code or 0
