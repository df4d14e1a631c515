"""A full context on the screen: the reader is told what the model no longer sees."""

from dataclasses import replace


async def test_the_screen_tells_what_the_model_no_longer_sees(open_chat, backend, script):
    backend.most_messages = 4
    async with open_chat(script("One"), script("Two"), script("Three"), script("Four")) as chat:
        for prompt in ("First", "Second", "Third", "Fourth"):
            await chat.asked_and_answered(prompt)
        told = "The context is full: the model no longer sees the oldest prompt and its"
        await chat.until_shown("Four", told)
        said = [[message["content"] for message in asked] for asked in backend.asked]
        assert said[2] == ["Second", "Two", "Third"]
        assert said[3] == ["Third", "Three", "Fourth"]
        assert len(chat.screen.conversation.turns) == 4


async def test_an_answer_cut_by_the_context_says_so_and_the_chat_goes_on(
    open_chat, backend, script
):
    backend.most_messages = 2
    async with open_chat(replace(script("Cut"), reason="context"), script("Fine")) as chat:
        await chat.asked_and_answered("First")
        await chat.until_shown("stopped: the context is full")
        await chat.asked_and_answered("Second")
        await chat.until_shown("the model no longer sees the oldest prompt", "Fine")
