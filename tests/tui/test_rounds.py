"""F2: the ribbon of rounds, and the inside of each."""

import pytest

from dspark_tui import wording
from dspark_tui.screens.rounds import RoundsScreen

STEPS = (
    ([" a", " b"], [], " c", (0.9, 0.5)),
    ([" d"], [" e", " f"], " g", (0.8, 0.5, 0.25)),
    ([], [" h"], " end", (0.1,)),
)


@pytest.fixture
def answered(open_chat, script):
    return open_chat(script("Start", *STEPS), size=(90, 24))


async def test_rounds_are_walked_with_the_arrows(answered):
    async with answered as chat:
        await chat.asked_and_answered("Go")
        await chat.pilot.press("f2")
        await chat.until_shown("Round 3 of 3", "the target refused a draft", "▆▃▁")
        await chat.pilot.press("left")
        await chat.until_shown(
            "Round 2 of 3", "3 drafted, 3 verified, 1 accepted", "draft 10.0 ms", "other 0.0 ms"
        )
        assert "behind a rejected one" in chat.shown and "10% with those before" in chat.shown
        await chat.pilot.press("home")
        await chat.until_shown("Round 1 of 3", "every draft of the block was accepted", "·c")
        await chat.pilot.press("left", "left")
        await chat.until_shown("Round 1 of 3")
        await chat.pilot.press("end")
        await chat.until_shown("Round 3 of 3")
        await chat.pilot.press("escape")
        await chat.until(lambda: not isinstance(chat.app.screen, RoundsScreen))


async def test_without_an_answer_there_is_nothing_to_walk(open_chat):
    async with open_chat() as chat:
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.pilot.press("f2")
        await chat.until_shown(wording.NO_ROUNDS)


async def test_an_answer_under_way_can_be_looked_into(open_chat, backend, script):
    backend.is_held = True
    async with open_chat(script("Start", *STEPS)) as chat:
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("Go")
        backend.release(2)
        await chat.until_shown("Start a b c")
        await chat.pilot.press("f2")
        await chat.until_shown("Round 1 of 1")
        backend.release(1)
        await chat.until(lambda: len(chat.screen.turn.turn.events) == 3)
        await chat.pilot.press("right")
        await chat.until_shown("Round 2 of 2")


async def test_a_long_answer_keeps_the_chosen_round_in_sight(open_chat, script):
    async with open_chat(script("Start", *STEPS * 60), size=(60, 20)) as chat:
        await chat.asked_and_answered("Go")
        await chat.pilot.press("f2")
        await chat.until_shown("Round 180 of 180")
        await chat.pilot.press(*["pageup"] * 9)
        await chat.until_shown("Round 90 of 180", "Esc closes")
