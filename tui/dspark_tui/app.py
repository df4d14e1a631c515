"""The Textual application: themes, screens and the commands of the palette."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from textual import constants
from textual.app import App, SystemCommand
from textual.screen import Screen

from dspark_tui.backend import ChatBackend, ChatSettings
from dspark_tui.screens.chat import ChatScreen
from dspark_tui.screens.help import HelpScreen
from dspark_tui.themes import DARK, LIGHT, theme_for_terminal

TEXTUAL_OWN_DEFAULT_THEME = "textual-dark"
TEXTUAL_OWN_SCREENSHOT = "Screenshot"
WIDTHS: list[tuple[int, str]] = [(0, "-narrow"), (60, "-wide")]
HEIGHTS: list[tuple[int, str]] = [(0, "-short"), (14, "-tall")]


class DSparkApp(App[None]):
    TITLE = "dspark"
    CSS_PATH = "app.tcss"
    HORIZONTAL_BREAKPOINTS = WIDTHS
    VERTICAL_BREAKPOINTS = HEIGHTS

    def __init__(self, backend: ChatBackend, settings: ChatSettings) -> None:
        super().__init__()
        self.backend = backend
        self.settings = settings
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        # TEXTUAL_THEME, if someone has set it, wins.
        if constants.DEFAULT_THEME == TEXTUAL_OWN_DEFAULT_THEME:
            self.theme = theme_for_terminal().name

    def on_mount(self) -> None:
        self.push_screen(ChatScreen(self.backend, self.settings))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        if isinstance(screen, ChatScreen):
            yield from chat_commands(screen)
            yield SystemCommand("Light or dark", "Change to the other palette", self.action_flip)
            yield SystemCommand("Save screenshot", "As SVG, in this folder", self.action_save)
        for command in super().get_system_commands(screen):
            if command.title != TEXTUAL_OWN_SCREENSHOT:
                yield command

    def action_help(self) -> None:
        self.push_screen(HelpScreen())

    def action_save(self) -> None:
        # The palette has to leave the picture first.
        self.set_timer(0.2, self._save_screenshot)

    def _save_screenshot(self) -> None:
        """Textual's own command needs a downloads folder, which many machines do not have."""
        path = Path(f"dspark-{datetime.now():%Y-%m-%d-%H%M%S}.svg")
        part = path.with_suffix(".part")
        try:
            part.write_text(self.export_screenshot(), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            self.notify(f"{path} could not be written: {error.strerror}.", severity="error")
        else:
            self.notify(f"Saved {path}.")

    def action_flip(self) -> None:
        self.theme = LIGHT.name if self.current_theme.dark else DARK.name


def chat_commands(chat: ChatScreen) -> Iterable[SystemCommand]:
    rejected = "Hide rejected drafts" if chat.view.show_rejected else "Show rejected drafts"
    shading = "Colour by origin" if chat.view.shading else "Shade by confidence"
    yield SystemCommand("New chat", "Forget this conversation", chat.action_new_chat)
    yield SystemCommand(rejected, "Drafts that the target refused", chat.action_toggle_rejected)
    yield SystemCommand(shading, "How drafts are told apart", chat.action_toggle_shading)
    yield SystemCommand("Copy last answer", "As plain text, without marks", chat.action_copy_answer)
    if chat.turn is not None:
        yield SystemCommand("Stop the answer", "Keep what was written", chat.action_stop)


def run_chat(backend: ChatBackend, settings: ChatSettings) -> int:
    """Runs until the person quits; returns the exit code."""
    app = DSparkApp(backend, settings)
    try:
        app.run()
        return app.return_code or 0
    finally:
        backend.close()
