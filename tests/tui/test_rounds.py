"""F2: the ribbon of rounds, and the inside of each."""

from dataclasses import replace

import pytest

from dspark.events import Round
from dspark_tui import wording
from dspark_tui.screens.rounds import RoundsScreen

STEPS = (
    ([" a", " b"], [], " c", (0.9, 0.5)),
    ([" d"], [" e", " f"], " g", (0.8, 0.5, 0.25)),
    ([], [" h"], " end", (0.1,)),
)


def columns_of(chat, draft: str, outcome: str) -> list[str]:
    """What stands behind the outcome of a draft."""
    lines = chat.shown.splitlines()
    line = next(each for each in lines if f" {draft} " in each and outcome in each)
    return line.split(outcome)[1].replace("│", "").split()


@pytest.fixture
def answered(open_chat, script):
    return open_chat(script("Start", *STEPS), size=(90, 24))


async def test_rounds_are_walked_with_the_arrows(answered):
    async with answered as chat:
        await chat.asked_and_answered("Go")
        await chat.pilot.press("f2")
        await chat.until_shown("Round 3 of 3", "the model refused a draft", "▆▃▁", "✓✗✗")
        await chat.until_shown("The answer ends here: the model wrote its end mark.")
        await chat.pilot.press("left")
        await chat.until(lambda: "The answer ends here" not in chat.shown)
        await chat.until_shown("Round 2 of 3", "3 drafted, 3 verified, 1 accepted", "draft 10.0 ms")
        await chat.until_shown("verify 30.0 ms · accept 2.0 ms · host 8.0 ms")
        assert columns_of(chat, "·f", "behind a rejected one") == ["25%", "10%"]
        await chat.pilot.press("home")
        await chat.until_shown("Round 1 of 3", "every draft of the block was accepted", "·c")
        await chat.pilot.press("left", "left")
        await chat.until_shown("Round 1 of 3")
        await chat.pilot.press("end")
        await chat.until_shown("Round 3 of 3")
        await chat.pilot.press("f1")
        await chat.until_shown("Rounds, in F2", "p(model)", "survival")
        await chat.pilot.press("escape", "escape")
        await chat.until(lambda: not isinstance(chat.app.screen, RoundsScreen))


async def test_a_row_tells_what_it_cost_in_routed_experts(open_chat, script, monkeypatch):
    """60 experts of 13 MB for the anchor and one of two drafts."""
    fields = {"expert_reads": 60, "expert_far": 6, "expert_bytes": 13_000_000}
    fields |= {"draft": (1, 2), "confidence": (0.9, 0.1), "verified": 1}
    monkeypatch.setattr(
        "tests.tui.conftest.Round", lambda *rest, **own: replace(Round(*rest, **own), **fields)
    )
    async with open_chat(script("Start", ([" a"], [], " end", (0.9,))), size=(130, 24)) as chat:
        await chat.asked_and_answered("Go")
        await chat.pilot.press("f2")
        await chat.until_shown("60 routed experts read, 6 from the SSD · 390 MB for each of 2 rows")
        await chat.until_shown("the schedule left 1 out")


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


async def test_probabilities_are_asked_for_once_somebody_looks(open_chat, backend, script):
    told = ([" a"], [" b"], " c", (0.9, 0.5), (0.8, 0.6), (0.7, 0.02))
    async with open_chat(script("One", told), script("Two", told), size=(90, 24)) as chat:
        await chat.asked_and_answered("Go")
        assert not backend.tells_probs
        await chat.pilot.press("f2")
        await chat.until_shown("from the next answer on")
        assert "p(model)" not in chat.shown
        await chat.pilot.press("escape")
        await chat.asked_and_answered("Again")
        await chat.pilot.press("f2")
        await chat.until_shown("p(draft)  p(model)  sure  survival")
        assert columns_of(chat, "·a", "accepted") == ["80%", "70%", "90%", "90%"]
        assert columns_of(chat, "·b", "rejected") == ["60%", "2%", "50%", "45%"]
        assert "from the next answer on" not in chat.shown
        await chat.pilot.resize_terminal(60, 20)
        await chat.until(lambda: columns_of(chat, "·b", "rejected") == ["60%", "2%", "50%"])
