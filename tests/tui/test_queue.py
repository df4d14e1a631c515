"""Prompts queue while something else goes on: in order, visible, and to be taken back."""

import pytest

from dspark.errors import DownloadError, InputError


def prompts(backend) -> list[str]:
    return [messages[-1]["content"] for messages in backend.asked]


@pytest.fixture
def busy(open_chat, backend, script):
    """The chat, held while it answers "First", with other answers to come."""
    backend.is_held = True
    answers = (script("One", ([], [], " more")), script("Two"), script("Three"))
    return open_chat(*answers)


async def start(chat, backend) -> None:
    backend.release(3)
    await chat.until(lambda: chat.screen.phase == "ready")
    await chat.ask("First")
    backend.release(1)
    await chat.until_shown("One")


async def test_prompts_are_sent_in_order_each_with_the_answers_before(busy, backend):
    async with busy as chat:
        await start(chat, backend)
        await chat.ask("Second")
        await chat.ask("Third")
        await chat.until_shown("Second", "Third", "queued; Up takes it back")
        assert chat.prompt.text == "" and prompts(backend) == ["First"]
        backend.release(20)
        await chat.until_shown("Two", "Three")
        await chat.until(lambda: chat.screen.phase == "ready")
        assert prompts(backend) == ["First", "Second", "Third"]
        said = [message["content"] for message in backend.asked[2]]
        assert said == ["First", "One more", "Second", "Two", "Third"]
        assert "queued" not in chat.shown


@pytest.mark.parametrize("key", ["up", "escape"])
async def test_the_newest_is_taken_back_first(busy, backend, key):
    async with busy as chat:
        await start(chat, backend)
        await chat.ask("Second")
        await chat.ask("Third")
        await chat.pilot.press(key)
        await chat.until(lambda: chat.prompt.text == "Third")
        await chat.until_shown("Second")
        backend.release(20)
        await chat.until_shown("Two")
        assert prompts(backend) == ["First", "Second"]


async def test_escape_stops_the_answer_once_nothing_is_queued(busy, backend):
    async with busy as chat:
        await start(chat, backend)
        await chat.ask("Second")
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.prompt.text == "Second")
        assert not backend.is_cancelled
        await chat.pilot.press("escape")
        backend.release(1)
        await chat.until_shown("stopped")
        assert backend.num_cancels == 1
        assert chat.prompt.text == "Second"


async def test_up_in_a_prompt_moves_the_cursor(busy, backend):
    async with busy as chat:
        await start(chat, backend)
        await chat.ask("Second")
        await chat.pilot.press("x", "up")
        await chat.pilot.pause()
        assert chat.prompt.text == "x"
        await chat.until_shown("queued; Up takes it back")


async def test_taking_back_keeps_what_is_typed(busy, backend):
    async with busy as chat:
        await start(chat, backend)
        await chat.ask("Second")
        await chat.pilot.press("x", "escape")
        await chat.until(lambda: chat.prompt.text == "Second\nx")


async def test_after_a_stop_the_queue_waits_for_enter(busy, backend):
    async with busy as chat:
        await start(chat, backend)
        await chat.ask("Second")
        await chat.pilot.press("ctrl+c")
        backend.release(1)
        await chat.until_shown("stopped", "The queued prompt is kept: Enter sends")
        assert prompts(backend) == ["First"]
        await chat.pilot.press("enter")
        backend.release(10)
        await chat.until_shown("Two")
        assert prompts(backend) == ["First", "Second"]


async def test_after_a_failure_the_mended_prompt_goes_first(open_chat, backend, script):
    backend.is_held = True
    failing = script("", error=InputError("the model has hiccups", "Give it water."))
    async with open_chat(failing, script("One"), script("Two")) as chat:
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("First")
        await chat.ask("Second")
        backend.release(1)
        await chat.until_shown("✗ The model has hiccups")
        assert chat.prompt.text == "First"
        await chat.pilot.press("!", "enter")
        backend.release(20)
        await chat.until_shown("One", "Two")
        assert prompts(backend) == ["First", "First!", "Second"]
        assert chat.shown.index("One") < chat.shown.index("Two")


async def test_prompts_queue_while_loading_and_survive_its_failure(open_chat, backend, script):
    backend.load_errors = [DownloadError("no network", "Check the connection.")]
    backend.is_held = True
    async with open_chat(script("One"), script("Two")) as chat:
        await chat.ask("First")
        await chat.ask("Second")
        await chat.until_shown("First", "Second", "waits until the model is loaded")
        backend.release(3)
        await chat.until_shown("✗ No network", "Second")
        assert chat.prompt.text == "First"
        await chat.pilot.press("enter")
        backend.release(20)
        await chat.until_shown("One", "Two")
        assert prompts(backend) == ["First", "Second"]


async def test_a_new_chat_gives_every_queued_prompt_back(busy, backend):
    async with busy as chat:
        await start(chat, backend)
        await chat.ask("Second")
        await chat.ask("Third")
        await chat.pilot.press("ctrl+n")
        await chat.until(lambda: chat.prompt.text == "Second\nThird")
        backend.release(5)


async def test_a_first_prompt_is_sent_once_the_model_is_there(open_chat, backend, script):
    from dspark.chat.backend import ChatSettings

    backend.is_held = True
    settings = ChatSettings(prompts=("/usr/bin holds what?",))
    async with open_chat(script("Programs"), settings=settings) as chat:
        await chat.until_shown("/usr/bin holds what?", "waits until the model is loaded")
        backend.release(10)
        await chat.until_shown("Programs")
        assert prompts(backend) == ["/usr/bin holds what?"]
