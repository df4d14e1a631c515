"""A race in the chat, beside which nothing else runs."""

from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

from dspark.bench.config import RACE_TOKENS
from dspark.chat.backend import ChatMessages
from dspark.errors import DSparkError
from dspark_tui import wording
from dspark_tui.race_run import RaceRun
from dspark_tui.screens.race import RaceScreen
from dspark_tui.widgets.prompt_box import PromptBox

if TYPE_CHECKING:
    from dspark_tui.screens.chat import ChatScreen


def start(screen: "ChatScreen", against: str = "") -> None:
    """Of the prompt in the box, or of the last one, by plain decoding or by the head `against`, and
    by the chat's own drafter. Raises DSparkError."""
    if screen.phase != "ready":
        raise DSparkError(wording.WAIT_FOR_ANSWER)
    stop = screen.settings.stop
    if stop.max_tokens is None:
        stop = replace(stop, max_tokens=RACE_TOKENS)
    messages = _messages(screen)
    run = RaceRun(screen.worker.backend.race(messages, screen.settings.sampling, stop, against))
    screen.app.push_screen(RaceScreen(run, screen.view))
    screen.worker.race(run)


def _messages(screen: "ChatScreen") -> ChatMessages:
    if prompt := screen.query_one(PromptBox).text.strip():
        return screen.conversation.with_prompt(prompt)
    if screen.last is None:
        raise DSparkError(wording.NOTHING_TO_RACE)
    turn = screen.last
    read = takewhile(lambda each: each is not turn.turn, turn.conversation.turns)
    before = replace(turn.conversation, turns=list(read))
    return before.with_prompt(turn.prompt, turn.turn.opening)
