"""Ctrl+N begins a new chat and, in an empty one, brings the last one back: no key loses a word."""


def contents(messages) -> list[str]:
    return [message["content"] for message in messages]


async def test_a_new_chat_knows_nothing_of_the_last_one(open_chat, backend, script):
    async with open_chat(script("Paris"), script("Fresh")) as chat:
        await chat.asked_and_answered("Go")
        await chat.until_shown("context 13/8,192")
        await chat.pilot.press("ctrl+n")
        await chat.until_shown("New chat. Ctrl+N again brings the last one back.", "demo is ready")
        assert "Paris" not in chat.shown
        await chat.asked_and_answered("New")
        await chat.until_shown("Fresh")
        assert contents(backend.asked[1]) == ["New"]


async def test_the_same_key_brings_the_last_chat_back_with_its_figures(open_chat, backend, script):
    first = script("Paris", ([" is"], [], " it"))
    async with open_chat(first, script("Again")) as chat:
        await chat.asked_and_answered("Go")
        await chat.until_shown("τ 2.00", "context 15/8,192")
        await chat.pilot.press("ctrl+n")
        await chat.until_shown("^N Last chat")
        await chat.pilot.press("ctrl+n")
        await chat.until_shown("Go", "Paris is it", "^N New chat")
        assert chat.screen.hint is None
        await chat.until_shown("τ 2.00", "context 15/8,192")
        await chat.asked_and_answered("More")
        assert contents(backend.asked[1]) == ["Go", "Paris is it", "More"]


async def test_a_failed_attempt_in_between_does_not_push_the_last_chat_out(open_chat, script):
    failing = script("", error=RuntimeError("boom"))
    async with open_chat(script("Paris"), failing) as chat:
        await chat.asked_and_answered("Go")
        await chat.pilot.press("ctrl+n")
        await chat.asked_and_answered("New")
        await chat.until_shown("✗ RuntimeError: boom")
        await chat.pilot.press("ctrl+n")
        await chat.until(lambda: "boom" not in chat.shown)
        await chat.pilot.press("ctrl+n")
        await chat.until_shown("Go", "Paris")


async def test_in_an_empty_chat_there_is_nothing_to_set_aside(open_chat, backend):
    async with open_chat() as chat:
        await chat.until_shown("demo is ready")
        await chat.pilot.press("ctrl+n", "ctrl+n")
        await chat.until_shown("demo is ready", "^N New chat")
        assert chat.screen.hint is None


async def test_a_running_answer_is_stopped_and_belongs_to_its_own_chat(open_chat, backend, script):
    backend.is_held = True
    paris = script("The", ([" capital"], [], " Paris"), ([], [], " Bonjour"))
    async with open_chat(paris, script("Fresh"), script("More")) as chat:
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("Go")
        backend.release(2)
        await chat.until_shown("Paris")
        await chat.pilot.press("ctrl+n")
        await chat.ask("New")
        backend.release(10)
        await chat.until_shown("Fresh")
        assert "Bonjour" not in chat.shown and "Paris" not in chat.shown
        assert contents(backend.asked[1]) == ["New"]
        last = chat.screen.aside[0]
        assert [contents(turn.messages) for turn in last.turns] == [["Go", "The capital Paris"]]


async def test_back_in_the_stopped_chat_its_part_of_an_answer_counts(open_chat, backend, script):
    backend.is_held = True
    paris = script("The", ([" capital"], [], " Paris"), ([], [], " Bonjour"))
    async with open_chat(paris, script("More")) as chat:
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("Go")
        backend.release(2)
        await chat.until_shown("Paris")
        await chat.pilot.press("ctrl+n")
        backend.release(1)
        await chat.until(lambda: chat.screen.left_turn is None)
        await chat.pilot.press("ctrl+n")
        await chat.until_shown("The capital Paris", "stopped")
        backend.release(5)
        await chat.asked_and_answered("On")
        assert contents(backend.asked[1]) == ["Go", "The capital Paris", "On"]
