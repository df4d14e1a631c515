"""F3 and /race: the last prompt, or the one in the box, twice on one clock."""

import pytest

from dspark_tui import wording
from dspark_tui.screens.race import RaceScreen

SLOW = [([], [], f" w{n}") for n in range(4)]
QUICK = [([" w0", " w1"], [" x"], " w2"), ([], [], " w3")]


@pytest.fixture
def racing(open_chat, script):
    return open_chat(script("Start", *QUICK), script("Start", *SLOW), script("Start", *QUICK))


async def test_the_last_prompt_races_and_the_verdict_stays_until_escape(racing, backend, script):
    async with racing as chat:
        await chat.asked_and_answered("Go")
        await chat.pilot.press("f3")
        await chat.until_shown("Race", "plain", "demo", "tok/s", "the same text")
        await chat.until_shown("demo wrote", "as many tokens a second as plain")
        await chat.until_shown("accepted draft", "rejected draft", "the model's own")
        assert backend.asked[1] == backend.asked[0] and backend.raced == [("", 256)]
        assert chat.shown.count("Start w0 w1") == 2
        assert chat.style(" x").strike
        await chat.pilot.press("escape")
        await chat.until(lambda: not isinstance(chat.app.screen, RaceScreen))
        backend.scripts.append(script("Next"))
        await chat.asked_and_answered("More")
        assert [each["content"] for each in backend.asked[2]] == ["Go", "Start w0 w1 w2 w3", "More"]


async def test_other_text_is_named_and_a_head_may_be_raced(open_chat, script, backend):
    scripts = script("Start", *SLOW), script("Another", *QUICK)
    async with open_chat(*scripts) as chat:
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.pilot.press("f3")
        await chat.until_shown(wording.capitalised(wording.NOTHING_TO_RACE))
        chat.prompt.put("Mine")
        chat.screen.action_race()
        await chat.until_shown("DIFFERENT TEXT")
        assert [each["content"] for each in backend.asked[0]] == ["Mine"]
        assert chat.prompt.text == "Mine"


async def test_a_race_that_is_left_ends_and_the_chat_goes_on(open_chat, script, backend):
    backend.is_held = True
    scripts = [script("Start", *QUICK), script("Start", *SLOW), script("Start", *QUICK)]
    async with open_chat(*scripts, script("Next")) as chat:
        backend.release(20)
        await chat.asked_and_answered("Go")
        while backend._gate.acquire(blocking=False):
            pass
        await chat.ask("/race lookup")
        backend.release(2)
        await chat.until_shown("lookup", "Start")
        await chat.pilot.press("escape")
        assert backend.raced == [("lookup", 256)]
        backend.release(20)
        await chat.asked_and_answered("More")
        await chat.until_shown("Next")
