"""Commands, their arguments and paths are offered above the box; Tab takes one."""

import pytest

from dspark.chat.commands import COMMANDS
from dspark_tui.completion import completions
from dspark_tui.widgets.completion_list import CompletionList


async def typed(chat, text: str) -> None:
    await chat.until(lambda: chat.screen.phase == "ready")
    await chat.pilot.press(*text)
    await chat.pilot.pause()


def offered(chat) -> list[str]:
    return [each.text for each in chat.screen.query_one(CompletionList).offered]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("add.py", "all notes.md", ".hidden", "src/deep.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()


async def test_commands_are_listed_and_tab_takes_one_at_60_by_16(open_chat):
    async with open_chat(size=(60, 16)) as chat:
        await typed(chat, "/s")
        assert offered(chat) == ["/set ", "/show", "/save ", "/search "]
        await chat.until_shown("/show", "The settings and the model", "F1 Help", "/s")
        await chat.pilot.press("down", "tab")
        await chat.until(lambda: chat.prompt.text == "/show")
        await chat.until(lambda: not offered(chat))
        await chat.pilot.press("enter")
        await chat.until_shown("max_tokens")


async def test_arguments_follow_their_command(open_chat):
    async with open_chat() as chat:
        await typed(chat, "/set te")
        await chat.pilot.press("tab")
        await chat.until(lambda: chat.prompt.text == "/set temperature ")
        await chat.pilot.press("ctrl+u", *"/set schedule a")
        await chat.pilot.pause()
        assert offered(chat) == ["auto", "async"]


async def test_enter_sends_and_escape_closes_the_list(open_chat):
    async with open_chat() as chat:
        await typed(chat, "/sh")
        await chat.pilot.press("escape")
        assert offered(chat) == [] and chat.prompt.text == "/sh"
        assert not chat.screen.query_one(CompletionList).display
        await chat.pilot.press("backspace")
        await chat.until(lambda: offered(chat))
        await chat.pilot.press("enter")
        await chat.until_shown("There is no command /s. ")


async def test_paths_go_on_into_folders(open_chat, folder):
    async with open_chat() as chat:
        await typed(chat, "See @")
        assert offered(chat) == ["@src/", "@add.py ", '@"all notes.md" ']
        await chat.pilot.press("tab")
        await chat.until(lambda: offered(chat) == ["@src/deep.py "])
        await chat.pilot.press("tab")
        await chat.until(lambda: chat.prompt.text == "See @src/deep.py ")
        assert chat.prompt.cursor_location == (0, 17)


@pytest.mark.parametrize(
    ("before", "texts"),
    [
        ("@.h", ["@.hidden "]),
        ('@"all', ['@"all notes.md" ']),
        ("@none/", []),
        ("me@", []),
        ("what is /s", []),
        ("/", [f"{name} " if usage.argument else name for name, usage in COMMANDS.items()]),
        ("/show", []),
        ("/model d", ["demo", "dense"]),
        ("/model demo", []),
        ("/set seed ", ["default"]),
        ("/set nothing ", []),
    ],
)
def test_what_is_offered(folder, before, texts):
    found = completions(before, {"/model": lambda: ["demo", "dense", "other"]})
    assert [each.text for each in found] == texts
