"""Pictures of the chat, compared with those in tests/tui/snapshots; `make snapshots` draws anew.

A picture is Textual's own SVG without what is made up anew each time or belongs to its page: ids,
the style of the page, the frame around the terminal.
"""

import os
import re
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

import pytest

from dspark.bench import race
from dspark.chat.sessions.store import ChatStore
from dspark.errors import InputError
from dspark_tui.themes import LIGHT
from dspark_tui.widgets import sidebar

FOLDER = Path(__file__).parent / "snapshots"
IS_DRAWN_ANEW = bool(os.environ.get("DSPARK_DRAW_SNAPSHOTS"))
NOW = 1_796_000_000.0
MARKDOWN = (
    "Two ways to add:\n\n1. by *hand*\n2. with `sum`\n\n```python\ntotal = sum([1, 2])\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n"
)
STEPS = (
    ([" capital", " is"], [" Lyon", " now"], " Paris", (0.95, 0.9, 0.2, 0.1)),
    ([".", " It", " lies"], [], " on", (0.99, 0.6, 0.7)),
    ([" the"], [" sea"], " Seine", (0.97, 0.3)),
    ([], [" ,"], ".", (0.4,)),
)


def normalised(svg: str) -> str:
    """Ids are hashes of the content, and the page's style is Rich's."""
    svg = re.sub(r"terminal-\d+", "terminal", svg)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


@pytest.fixture
def compare(monkeypatch) -> Callable[..., Awaitable[None]]:
    monkeypatch.setattr(sidebar.time, "time", lambda: NOW)

    async def picture(chat, name: str, *texts: str) -> None:
        chat.prompt.cursor_blink, chat.screen.hint = False, None
        await chat.until_shown(*texts)
        await chat.pilot.pause()
        drawn = normalised(chat.app.export_screenshot(title="dspark chat"))
        path = FOLDER / f"{name}.svg"
        if IS_DRAWN_ANEW:
            path.write_text(drawn, encoding="utf-8")
        assert drawn == path.read_text(encoding="utf-8"), (
            f"{path.name} looks different now; `make snapshots` draws it anew\n{chat.shown}"
        )

    return picture


@pytest.fixture
def paris(script):
    return script("The", *STEPS)


@pytest.mark.parametrize(("name", "size"), [("wide", (100, 24)), ("narrow", (60, 16))])
async def test_an_answer_with_its_marks(open_chat, paris, compare, name, size):
    async with open_chat(paris, size=size) as chat:
        await chat.asked_and_answered("What is the capital of France?")
        await compare(chat, name, "Seine", "τ")


async def test_shades_of_confidence(open_chat, paris, compare):
    async with open_chat(paris) as chat:
        await chat.asked_and_answered("What is the capital of France?")
        await chat.pilot.press("ctrl+t")
        await compare(chat, "shaded", "unsure")


async def test_on_a_light_terminal(open_chat, paris, compare):
    async with open_chat(paris) as chat:
        chat.app.theme = LIGHT.name
        await chat.asked_and_answered("What is the capital of France?")
        await compare(chat, "light", "Seine")


async def test_without_colours(open_chat, paris, compare, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    async with open_chat(paris) as chat:
        await chat.asked_and_answered("What is the capital of France?")
        await compare(chat, "no-color", "Seine")


async def test_an_ended_answer_in_markdown(open_chat, script, compare):
    async with open_chat(
        script(MARKDOWN, thinking=("Hm, sums.",)), rendered=True, size=(80, 34)
    ) as chat:
        await chat.asked_and_answered("How do I add?")
        await compare(chat, "markdown", "total = sum", "Thinking (")


async def test_an_error(open_chat, script, compare):
    failing = script("The", error=InputError("the model has hiccups", "Give it water."))
    async with open_chat(failing) as chat:
        await chat.asked_and_answered("Go")
        await compare(chat, "error", "Give it water.")


async def test_the_inspector_of_rounds(open_chat, paris, compare):
    async with open_chat(paris, size=(100, 24)) as chat:
        await chat.asked_and_answered("What is the capital of France?")
        await chat.pilot.press("f2", "home")
        await compare(chat, "inspector", "Round 1 of 4", "Lyon")


async def test_a_race(open_chat, paris, compare, monkeypatch):
    ticks = count()
    monkeypatch.setattr(race, "perf_counter", lambda: next(ticks) / 64)
    async with open_chat(paris, paris, paris, size=(100, 24)) as chat:
        await chat.asked_and_answered("What is the capital of France?")
        await chat.pilot.press("f3")
        await compare(chat, "race", "a dead heat", "same text")


async def test_the_sidebar(open_chat, paris, script, compare, tmp_path):
    async with open_chat(
        paris, script("Yes."), store=ChatStore(tmp_path / "chats.sqlite"), size=(100, 24)
    ) as chat:
        await chat.asked_and_answered("What is the capital of France?")
        await chat.pilot.press("ctrl+n")
        await chat.asked_and_answered("Is it large?")
        await chat.pilot.press("ctrl+b")
        await compare(chat, "sidebar", "now", "Enter Open")


async def test_the_help(open_chat, compare):
    async with open_chat(size=(90, 40)) as chat:
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.pilot.press("f1")
        await compare(chat, "help", "Figures")


def test_the_pictures_stay_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000
