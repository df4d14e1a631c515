"""`@file` in a prompt, and long pastes: short on the screen, whole for the model."""

import re

import pytest
from textual import events

from dspark.chat import attachments
from dspark.chat.sessions.store import ChatStore
from dspark_tui.widgets.transcript import UserMessage

LINES = "\n".join(f"line {number}" for number in range(214))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "add.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "my notes.md").write_text("Use:\n```\nadd\n```\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    (tmp_path / "large.txt").write_bytes(b"a" * (attachments.MOST_BYTES + 1))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "src").mkdir()
    return tmp_path


def prompts(backend) -> list[str]:
    return [messages[-1]["content"] for messages in backend.asked]


async def ready(chat) -> None:
    await chat.until(lambda: chat.screen.phase == "ready")


async def test_a_named_file_goes_to_the_model_and_its_name_is_shown(open_chat, backend, script):
    async with open_chat(script("It adds")) as chat:
        await chat.asked_and_answered("What does @add.py do?")
        await chat.until_shown("What does @add.py do?", "+ add.py, 31 bytes", "It adds")
        assert "return a + b" not in chat.shown
        await chat.pilot.click(UserMessage)
        await chat.until_shown("return a + b")
    assert prompts(backend) == [
        "What does @add.py do?\n\nadd.py:\n```py\ndef add(a, b):\n    return a + b\n```"
    ]


async def test_a_prompt_with_a_file_is_edited_and_recalled_as_typed(
    open_chat, backend, script, folder
):
    async with open_chat(script("One"), script("Two")) as chat:
        await chat.asked_and_answered("Explain @add.py")
        await chat.pilot.press("up")
        assert chat.prompt.text == "Explain @add.py"
        await chat.pilot.press("ctrl+c", *"/edit", "enter")
        await chat.until(lambda: chat.prompt.text == "Explain @add.py")
        (folder / "add.py").write_text("add = sum\n")
        await chat.pilot.press("enter")
        await chat.until_shown("Two")
    assert prompts(backend)[1] == "Explain @add.py\n\nadd.py:\n```py\nadd = sum\n```"


async def test_a_stored_chat_shows_the_name_again(open_chat, script, tmp_path):
    path = tmp_path / "chats.sqlite"
    async with open_chat(script("One"), store=ChatStore(path)) as chat:
        await chat.asked_and_answered("Explain @add.py")
    store = ChatStore(path)
    async with open_chat(store=store, first_chat=store.chats()[0].id) as chat:
        await chat.until_shown("Explain @add.py", "+ add.py, 31 bytes")
        assert "return" not in chat.shown
        await ready(chat)
        await chat.pilot.press("up")
        assert chat.prompt.text == "Explain @add.py"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("See @missing.py", "There is no file missing.py."),
        ("See @picture.png", "Picture.png is not text."),
        ("See @large.txt", "Large.txt is larger than 256 KB."),
        ("See @src", "src is a folder."),
    ],
)
async def test_a_file_that_cannot_go_is_a_line_and_the_text_stays(open_chat, backend, prompt, said):
    async with open_chat() as chat:
        await ready(chat)
        await chat.ask(prompt)
        await chat.until(lambda: chat.screen.hint is not None)
        assert said.lower() in chat.screen.hint.text.lower() and chat.screen.hint.is_error
        assert chat.prompt.text == prompt and backend.asked == []


@pytest.mark.parametrize(
    "text",
    [
        "@property",
        "me@home.org",
        "`@missing.py`",
        '@app.route("/")',
        "@",
        "a @ b",
        "@\0",
        "@~nobody",
    ],
)
def test_an_at_that_names_no_file_is_text(text):
    assert attachments.attach(text) == text


@pytest.mark.parametrize(
    "typed",
    ["@add.py", "Two: @add.py, @empty.txt.", 'In @"my notes.md"?', "@add.py @add.py", "@./add.py"],
)
def test_what_was_attached_is_taken_off_again(typed):
    sent = attachments.attach(typed)
    assert sent.startswith(f"{typed}\n\n")
    found, files = attachments.detach(sent)
    assert found == typed
    names = re.findall(r'@"?([\w./ ]+?\.(?:py|txt|md))', typed)
    assert [each.name for each in files] == list(dict.fromkeys(names))


def test_a_fence_in_a_file_does_not_end_its_block():
    sent = attachments.attach('@"my notes.md"')
    assert sent.endswith("\n````md\nUse:\n```\nadd\n```\n````")


@pytest.mark.parametrize("text", ["Hello", "a.py:\n```\nx\n```", "Look\n\na.py:\n```\nx\n```"])
def test_a_block_that_was_typed_stays(text):
    assert attachments.detach(text) == (text, [])


async def paste(chat, text: str) -> None:
    await ready(chat)
    chat.app.post_message(events.Paste(text))
    await chat.pilot.pause()


async def test_a_long_paste_stands_as_its_size_and_is_sent_whole(open_chat, backend, script):
    async with open_chat(script("Long"), script("Again")) as chat:
        await chat.pilot.press(*"See ")
        await paste(chat, LINES.replace("\n", "\r"))
        await chat.until_shown("See [Pasted text, 214 lines]")
        await chat.pilot.press("enter")
        await chat.until_shown("Long")
        assert "line 3" not in chat.shown and "[Pasted text, 214 lines]" in chat.shown
        await chat.pilot.press("up")
        assert chat.prompt.text == "See [Pasted text, 214 lines]"
        await chat.pilot.press("!", "enter")
        await chat.until_shown("Again")
        await chat.pilot.press(*"/edit", "enter")
        await chat.until(lambda: chat.prompt.text == "See [Pasted text, 214 lines]!")
    assert prompts(backend) == [f"See {LINES}", f"See {LINES}!"]


async def test_pastes_of_one_size_are_told_apart_and_a_short_one_stands(open_chat, backend, script):
    async with open_chat(script("Both")) as chat:
        await paste(chat, LINES)
        await paste(chat, LINES.upper())
        await paste(chat, "short\ntext")
        await chat.until(lambda: chat.prompt.text.endswith("short\ntext"))
        assert chat.prompt.text == ("[Pasted text, 214 lines][Pasted text 2, 214 lines]short\ntext")
        await chat.pilot.press("enter")
        await chat.until_shown("Both")
    assert prompts(backend) == [f"{LINES}{LINES.upper()}short\ntext"]


async def test_backspace_takes_a_paste_as_a_whole(open_chat):
    async with open_chat() as chat:
        await chat.pilot.press("a")
        await paste(chat, LINES)
        await chat.until(lambda: "Pasted" in chat.prompt.text)
        await chat.pilot.press("backspace")
        assert chat.prompt.text == "a"
        await chat.pilot.press("ctrl+z")
        assert chat.prompt.text == "a[Pasted text, 214 lines]"


async def test_no_file_is_looked_for_in_a_paste(open_chat, backend, script):
    code = "@functools.cache\ndef f(): ...\n" * 8
    async with open_chat(script("Code")) as chat:
        await paste(chat, code)
        await chat.pilot.press("enter")
        await chat.until_shown("Code")
    assert prompts(backend) == [code]
