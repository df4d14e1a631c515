"""Thinking is shown set apart, and is neither the answer nor part of the conversation."""

from dataclasses import replace

import pytest

from dspark.chat.token_spans import marks_of
from dspark.events import Finished, Piece, Round
from dspark_tui.widgets.spans import Spans


@pytest.fixture
def thoughtful(script):
    return replace(script("Paris", ([" it"], [" was"], " is.")), thinking=("Hmm,\n", "let me see"))


async def test_thinking_is_marked_and_dim_and_the_answer_is_not(open_chat, thoughtful):
    async with open_chat(thoughtful) as chat:
        await chat.asked_and_answered("Go")
        await chat.until_shown("Thinking", "Hmm,", "let me see", "Paris it was is.")
        assert chat.shown.index("Thinking") < chat.shown.index("Hmm") < chat.shown.index("Paris")
        thought, answer = chat.style("let me see"), chat.style("Paris")
        assert thought.italic and thought.color != answer.color
        assert not answer.italic
        line = next(line for line in chat.shown.splitlines() if "let me see" in line)
        assert "Paris" not in line


async def test_thinking_is_neither_copied_nor_sent_again(open_chat, backend, thoughtful, script):
    async with open_chat(thoughtful, script("Yes")) as chat:
        await chat.asked_and_answered("Go")
        chat.screen.action_copy_answer()
        assert chat.app.clipboard == "Paris it is."
        await chat.asked_and_answered("Sure?")
        said = [message["content"] for message in backend.asked[1]]
        assert said == ["Go", "Paris it is.", "Sure?"]


async def test_the_running_answer_is_copied_without_its_thinking(open_chat, backend, thoughtful):
    backend.is_held = True
    async with open_chat(thoughtful) as chat:
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("Go")
        backend.release(3)
        await chat.until_shown("Paris")
        chat.screen.action_copy_answer()
        assert chat.app.clipboard == "Paris"


async def test_an_answer_of_thinking_alone_is_not_kept(open_chat, backend, script):
    endless = replace(script(""), thinking=("Hmm", " hmm"), reason="max_tokens")
    async with open_chat(endless, script("Yes")) as chat:
        await chat.asked_and_answered("Go")
        await chat.until_shown("Hmm hmm", "stopped at the maximum number of tokens")
        assert chat.screen.conversation.turns == []
        await chat.asked_and_answered("Well?")
        assert [message["content"] for message in backend.asked[1]] == ["Well?"]


async def test_thinking_that_is_stopped_gives_the_prompt_back(open_chat, backend, script):
    backend.is_held = True
    async with open_chat(replace(script("Paris"), thinking=("Hmm",))) as chat:
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("Go")
        backend.release(1)
        await chat.until_shown("Hmm")
        await chat.pilot.press("escape")
        backend.release(2)
        await chat.until(lambda: chat.prompt.text == "Go")
        await chat.until_shown("Hmm", "stopped")


def test_marks_know_what_is_thinking(script):
    thought = Piece(1, "a", True, 0.5, is_thinking=True)
    end = Finished(0, "max_tokens", (), "", _stats(), tail="b", thinking="ab", ends_thinking=True)
    round_ = Round(0, 0, 1, (1,), None, 1, 1, 2, (thought,), (), 1, 0.0, 0.0, 0.0)
    assert [mark.is_thinking for mark in [*marks_of(round_), *marks_of(end)]] == [True, True]
    assert not marks_of(replace(end, ends_thinking=False))[0].is_thinking


def _stats():
    from dspark.chat.running_stats import NOTHING_YET

    return NOTHING_YET


async def test_a_refused_draft_stays_in_its_section(open_chat, backend, script):
    """Its own mark does not say on which side it stands."""
    async with open_chat(script("Paris", ([], [" Lyon"], "!"))) as chat:
        await chat.asked_and_answered("Go")
        await chat.until_shown("Paris Lyon!")
        assert "Thinking" not in chat.shown


async def test_thinking_comes_and_goes(open_chat, script):
    from dspark.chat.token_spans import Mark

    async with open_chat(script("Start")) as chat:
        await chat.asked_and_answered("Go")
        answer = chat.screen.query_one("Answer")
        answer.add(
            [
                Mark("first thought", "own", is_thinking=True),
                Mark("\n\n", "own"),
                Mark("one answer", "own"),
                Mark("second thought", "own", is_thinking=True),
                Mark("the end", "own"),
            ]
        )
        await chat.until_shown("the end")
        order = [chat.shown.index(text) for text in ("Start", "first", "one", "second", "the end")]
        assert order == sorted(order) and chat.shown.count("Thinking") == 2
        assert answer.query_one(Spans).text == "Start\none answer\nthe end"
