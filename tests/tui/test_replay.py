"""A trace on the screen."""

from dspark.chat.backend import BackendInfo
from dspark.chat.replay import ReplayBackend
from dspark.chat.trace import TracedAnswer
from dspark_tui.replay import FIRST_HINT, ReplayApp
from tests.tui.conftest import Chat, Told


def traced(prompt, script):
    told = Told()
    events = [told.prompt(script.first), *map(told.round, script.steps)]
    events.append(told.end(script.reason))
    info = BackendInfo("demo", 512, "cpu", "float32", True)
    return TracedAnswer(prompt, info, tuple((0.0, event) for event in events))


async def test_all_answers_come_one_after_the_other(script):
    first = traced("One", script("It", ([" is"], [" was"], " one.")))
    second = traced("Two", script("And", ([" now"], [], " two.")))
    app = ReplayApp(ReplayBackend([first, second]))
    async with app.run_test() as pilot:
        chat = Chat(app, pilot)
        await chat.until_shown("It is was one.", "And now two.", "τ 2.00")
        assert chat.style("was").strike
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("Three")
        await chat.until_shown("A replay has no model to answer with")


async def test_the_arrow_plays_a_round(script):
    answer = traced("One", script("It", ([" is"], [], " one"), ([" and"], [], " all.")))
    app = ReplayApp(ReplayBackend([answer], steps=True))
    async with app.run_test() as pilot:
        chat = Chat(app, pilot)
        await chat.until_shown("It", FIRST_HINT)
        await pilot.press("right")
        await chat.until_shown("It is one")
        assert "and" not in chat.shown.replace("commands", "").replace("Commands", "")
        await pilot.press("right")
        await chat.until_shown("It is one and all.")


async def test_without_steps_the_arrow_moves_the_cursor(script):
    app = ReplayApp(ReplayBackend([traced("One", script("It"))]))
    async with app.run_test() as pilot:
        chat = Chat(app, pilot)
        await chat.until(lambda: len(app.screen_stack) > 1)
        chat.prompt.text = "abc"
        chat.prompt.move_cursor((0, 0))
        await pilot.press("right")
        await chat.until(lambda: chat.prompt.cursor_location == (0, 1))
