"""A trace on the screen: played in its own time, round by round, or drawn at once as a picture."""

import asyncio
from typing import ClassVar

from textual.binding import Binding, BindingType

from dspark.chat.backend import ChatSettings
from dspark.chat.replay import ReplayBackend
from dspark_tui.app import DSparkApp, run_app
from dspark_tui.themes import DARK
from dspark_tui.token_styles import View
from dspark_tui.widgets.status_bar import Hint

FIRST_HINT = "Right arrow plays the next round."


class ReplayApp(DSparkApp):
    FIRST_VIEW = View(rendered=False)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right", "next_round", "Next round", priority=True)
    ]

    def __init__(self, backend: ReplayBackend) -> None:
        super().__init__(backend, ChatSettings(prompts=backend.prompts))
        self.replay = backend

    def on_mount(self) -> None:
        if self.replay.steps:
            self.call_after_refresh(lambda: self.chat.say(Hint(FIRST_HINT)))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The arrow belongs to the prompt box unless rounds wait for it."""
        return self.replay.steps if action == "next_round" else True

    def action_next_round(self) -> None:
        self.replay.step()


def run_replay(backend: ReplayBackend) -> int:
    """As `run_chat`."""
    return run_app(ReplayApp(backend))


def picture_of(backend: ReplayBackend, size: tuple[int, int]) -> str:
    """An SVG of the chat after the last answer; `size` in columns and rows."""
    return asyncio.run(_picture(backend, size))


async def _picture(backend: ReplayBackend, size: tuple[int, int]) -> str:
    app = ReplayApp(backend)
    async with app.run_test(size=size) as pilot:
        app.theme = DARK.name
        while app.chat.phase != "ready" or app.chat.queue:
            await pilot.pause(0.05)
        await pilot.pause(0.2)  # the last frame
        return app.export_screenshot(title="dspark chat")
