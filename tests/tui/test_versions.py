"""A message is chosen with the keyboard: edited, asked again, forked, continued, copied."""

import base64

import pytest

from dspark.chat.sessions.store import ChatStore
from dspark_tui import wording
from dspark_tui.widgets.key_line import KeyLine

CODE = "Here:\n```python\nprint(1)\n```\nand\n```\nplain\n```"


def said(backend) -> list[str]:
    return [message["content"] for message in backend.asked[-1]]


@pytest.fixture
def talk(open_chat, script):
    """The chat after two prompts, with more answers to come."""
    answers = [script(text) for text in ("One", "Two", "Three", "Four")]
    return open_chat(*answers, store=ChatStore(), size=(100, 30))


async def start(chat) -> None:
    await chat.asked_and_answered("First")
    await chat.asked_and_answered("Second")


async def test_an_edited_prompt_is_asked_in_place_of_the_old_one(talk, backend):
    async with talk as chat:
        await start(chat)
        await chat.pilot.press("alt+up", "alt+up", "e")
        await chat.until_shown(wording.EDITING["prompt"])
        assert chat.prompt.text == "First" and chat.prompt.has_focus
        await chat.pilot.press("!", "enter")
        await chat.until_shown("First!", "Three")
        assert said(backend) == ["First!"] and "Two" not in chat.shown
        await chat.until_shown("‹ 2/2 ›")
        await chat.asked_and_answered("Go on")
        assert said(backend) == ["First!", "Three", "Go on"]


async def test_the_old_version_is_a_key_away_with_what_followed(talk, backend):
    async with talk as chat:
        await start(chat)
        await chat.pilot.press("alt+up", "alt+up", "e", "!", "enter")
        await chat.until_shown("Three", "‹ 2/2 ›")
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.pilot.press("alt+up", "left")
        await chat.until_shown("First", "One", "Second", "Two", "‹ 1/2 ›")
        await chat.pilot.press("right")
        await chat.until_shown("First!", "Three", "‹ 2/2 ›")
        assert "Second" not in chat.shown


async def test_escape_leaves_the_editing_and_the_message(talk, backend):
    async with talk as chat:
        await start(chat)
        await chat.pilot.press("alt+up", "e")
        await chat.until(lambda: chat.prompt.text == "Second")
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.prompt.text == "")
        await chat.pilot.press("alt+up")
        await chat.until_shown("E Edit", "F Fork")
        await chat.pilot.press("escape")
        await chat.until_shown("F1 Help")
        assert chat.prompt.has_focus and len(backend.asked) == 2


async def test_an_answer_is_written_again(talk, backend):
    async with talk as chat:
        await start(chat)
        await chat.pilot.press("alt+up", "r")
        await chat.until_shown("Three", "‹ 2/2 ›", "Greedy decoding writes the same again")
        assert said(backend) == ["First", "One", "Second"] and "Two" not in chat.shown


async def test_a_title_follows_the_first_prompt_and_its_versions(talk):
    async with talk as chat:
        await start(chat)
        store = chat.screen.store
        await chat.pilot.press("alt+up", "up", "e")
        await chat.asked_and_answered("Zeroth")
        assert [each.title for each in store.chats()] == ["Zeroth"]
        await chat.pilot.press("alt+up", "left")
        await chat.until(lambda: [each.title for each in store.chats()] == ["First"])
        await chat.pilot.press("escape")
        await chat.ask("/save Mine")
        await chat.pilot.press("alt+up", "up", "right")
        await chat.until(lambda: chat.screen.shown[0].prompt == "Zeroth")
        assert [each.title for each in store.chats()] == ["Mine"]


async def test_every_fork_has_a_title_of_its_own(talk):
    async with talk as chat:
        await start(chat)
        for _ in range(3):
            await chat.ask("/fork")
            await chat.until(lambda: chat.screen.conversation.title.startswith("First (copy"))
        titles = {each.title for each in chat.screen.store.chats()}
        assert titles == {"First", "First (copy)", "First (copy 2)", "First (copy 3)"}


def test_a_long_title_is_cut_before_the_sign_of_a_copy():
    assert wording.forked("word " * 20, ()).endswith("word… (copy)")
    assert len(wording.forked("word " * 20, ())) <= 60


async def test_a_fork_leaves_the_first_chat_as_it_was(talk, backend):
    async with talk as chat:
        await start(chat)
        await chat.pilot.press("alt+up", "alt+up", "f")
        await chat.until_shown(wording.FORKED)
        assert "Second" not in chat.shown
        await chat.asked_and_answered("Elsewhere")
        assert said(backend) == ["First", "One", "Elsewhere"]
        store = chat.screen.store
        assert sorted(each.title for each in store.chats()) == ["First", "First (copy)"]
        assert [turn.prompt for turn in store.load(1).turns] == ["First", "Second"]


async def test_an_edited_answer_is_continued(talk, backend):
    async with talk as chat:
        await start(chat)
        await chat.ask("/continue")
        await chat.until(lambda: chat.prompt.text == "Two")
        await chat.until_shown(wording.EDITING["answer"])
        chat.prompt.put("Twenty-")
        await chat.pilot.press("enter")
        await chat.until_shown("Twenty-Three")
        assert said(backend) == ["First", "One", "Second", "Twenty-"]
        assert backend.asked[-1][-1]["role"] == "assistant"
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.asked_and_answered("Go on")
        assert said(backend)[-2:] == ["Twenty-Three", "Go on"]
        assert chat.screen.store.load(1).turns[1].text == "Twenty-Three"


async def test_a_continuation_that_adds_nothing_keeps_the_edited_answer(open_chat, backend, script):
    store = ChatStore()
    async with open_chat(script("One"), script(""), script("Two"), store=store) as chat:
        await chat.asked_and_answered("First")
        await chat.ask("/continue")
        await chat.until(lambda: chat.prompt.text == "One")
        chat.prompt.put("Uno")
        await chat.pilot.press("enter")
        await chat.until(lambda: len(backend.asked) == 2 and chat.screen.phase == "ready")
        await chat.asked_and_answered("Second")
        assert said(backend) == ["First", "Uno", "Second"]
        assert [turn.text for turn in store.load(1).turns] == ["Uno", "Two"]


async def test_commands_name_a_prompt_by_its_number(talk, backend):
    async with talk as chat:
        await start(chat)
        await chat.ask("/edit 1")
        await chat.until(lambda: chat.prompt.text == "First")
        await chat.pilot.press("escape")
        await chat.ask("/fork 7")
        await chat.until_shown("There is no prompt 7. There are 2.")
        chat.prompt.clear()
        await chat.ask("/regenerate")
        await chat.until_shown("Three")


async def test_while_an_answer_is_written_nothing_is_taken_back(open_chat, backend, script):
    backend.is_held = True
    async with open_chat(script("One"), script("Two", ([], [], " more"))) as chat:
        backend.release(4)
        await chat.asked_and_answered("First")
        await chat.ask("Second")
        backend.release(1)
        await chat.until_shown("Two")
        await chat.pilot.press("alt+up", "alt+up", "r")
        await chat.until_shown(wording.WAIT_FOR_ANSWER)
        assert len(chat.screen.shown) == 2


async def test_prompts_of_all_chats_are_recalled(open_chat, script):
    store = ChatStore()
    async with open_chat(script("One"), store=store) as chat:
        await chat.asked_and_answered("First")
    async with open_chat(script("Two"), store=store) as chat:
        await chat.asked_and_answered("Second\nline")
        await chat.pilot.press("up")
        await chat.until(lambda: chat.prompt.text == "Second\nline")
        await chat.pilot.press("up", "up")
        await chat.until(lambda: chat.prompt.text == "First")
        await chat.pilot.press("up", "down")
        await chat.until(lambda: chat.prompt.text == "Second\nline")
        await chat.pilot.press("down")
        await chat.until(lambda: chat.prompt.text == "")
        await chat.pilot.press("x", "up")
        assert chat.prompt.text == "x"


async def test_an_answer_and_its_code_are_copied(open_chat, script):
    async with open_chat(script(CODE), rendered=True, size=(80, 30)) as chat:
        await chat.asked_and_answered("Go")
        await chat.pilot.press("f4")
        await chat.until(lambda: chat.app.clipboard == CODE)
        await chat.pilot.press("alt+up", "1")
        await chat.until(lambda: chat.app.clipboard == "print(1)")
        await chat.pilot.press("2")
        await chat.until(lambda: chat.app.clipboard == "plain")
        await chat.pilot.press("3")
        await chat.until_shown("The answer has 2 blocks of code.")
        await chat.pilot.press("escape")
        await chat.pilot.click("CopyCode")
        await chat.until(lambda: chat.app.clipboard == "print(1)")


async def test_an_ended_answer_is_markdown_and_a_key_shows_its_marks(open_chat, script):
    answer = script("**Bold** and <b>html</b>", ([" `code`"], [" wrong"], "\n\n- a\n- b"))
    async with open_chat(answer, rendered=True) as chat:
        await chat.asked_and_answered("Go")
        await chat.until_shown("Bold and <b>html</b> code", "• a", "• b")
        assert chat.style("Bold").bold and "wrong" not in chat.shown
        await chat.pilot.press("ctrl+o")
        await chat.until_shown("**Bold** and <b>html</b> `code` wrong", "- a")
        assert chat.style("wrong").strike
        await chat.pilot.press("ctrl+o")
        await chat.until_shown("• a")


async def test_thinking_is_folded_in_a_rendered_answer(open_chat, script):
    answer = script("Paris", thinking=("Hmm, let me", " see"))
    async with open_chat(answer, rendered=True) as chat:
        await chat.asked_and_answered("Go")
        await chat.until_shown("Paris", "Thinking (4 words)")
        assert "let me see" not in chat.shown
        await chat.pilot.click("CollapsibleTitle")
        await chat.until_shown("let me see")


async def test_copied_text_goes_to_the_terminal_by_osc_52(open_chat, script, monkeypatch):
    async with open_chat(script(CODE), rendered=True, size=(80, 30)) as chat:
        await chat.asked_and_answered("Go")
        written: list[str] = []
        monkeypatch.setattr(chat.app._driver, "write", written.append)
        for copies, text in (
            (chat.pilot.press("f4"), CODE),
            (chat.pilot.click("CopyCode"), "print(1)"),
        ):
            await copies
            code = base64.b64encode(text.encode()).decode()
            await chat.until(lambda code=code: f"\x1b]52;c;{code}\a" in written)


async def test_a_click_copies_the_chosen_message(talk):
    async with talk as chat:
        await start(chat)
        await chat.pilot.press("alt+up", "alt+up")
        await chat.until_shown("C Copy")
        line = chat.shown.splitlines()[chat.screen.query_one(KeyLine).region.y]
        await chat.pilot.click(
            offset=(line.index("C Copy") + 2, chat.screen.query_one(KeyLine).region.y)
        )
        await chat.until(lambda: chat.app.clipboard == "One")


async def test_a_copy_of_code_that_is_not_there_stays_in_the_box(open_chat, script):
    async with open_chat(script("No code"), size=(100, 30)) as chat:
        await chat.asked_and_answered("Hi")
        await chat.ask("/copy 1")
        await chat.until_shown("The answer has no blocks of code.")
        assert chat.prompt.selected_text == "/copy 1"
