"""Chats that are kept: the sidebar, opening, searching, renaming, deleting, files."""

import json

import pytest
from textual.widgets import Input, OptionList

from dspark.chat.sessions.store import ChatStore
from dspark_tui import wording
from dspark_tui.app import farewell
from dspark_tui.widgets.sidebar import Sidebar


@pytest.fixture
def store(tmp_path):
    store = ChatStore(tmp_path / "chats.sqlite")
    yield store
    store.close()


def prompts(store, chat):
    return [turn.prompt for turn in store.load(chat).turns]


async def two_chats(chat) -> None:
    await chat.asked_and_answered("Name rivers")
    await chat.pilot.press("ctrl+n")
    await chat.asked_and_answered("Name birds")


async def test_what_is_said_is_stored_as_it_is_written(open_chat, backend, store, script):
    backend.is_held = True
    async with open_chat(
        script("The", ([" Rhine"], [" Po"], "!"), ([], [], "x")), store=store
    ) as chat:
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("Name rivers")
        backend.release(2)
        await chat.until_shown("The Rhine")
        (summary,) = store.chats()
        (turn,) = store.load(summary.id).turns
        assert (summary.title, summary.model, turn.text) == ("Name rivers", "demo", "The Rhine!")


async def test_a_stored_chat_is_opened_and_goes_on(open_chat, backend, store, script):
    async with open_chat(script("The Rhine"), script("Owls"), store=store) as chat:
        await two_chats(chat)
        rivers = store.chats()[1].id
    backend.scripts.clear()
    async with open_chat(script("The Po"), store=store, first_chat=rivers) as chat:
        await chat.until_shown("Name rivers", "The Rhine", "1 token", "context 13/8,192")
        await chat.asked_and_answered("More")
        assert [message["content"] for message in backend.asked[-1]] == [
            "Name rivers",
            "The Rhine",
            "More",
        ]
        assert prompts(store, rivers) == ["Name rivers", "More"] and len(store.chats()) == 2


async def test_the_sidebar_lists_and_opens_chats(open_chat, store, script):
    async with open_chat(script("The Rhine"), script("Owls"), store=store) as chat:
        await two_chats(chat)
        await chat.pilot.press("ctrl+b")
        await chat.until_shown("Name rivers", "Name birds", "now · demo", "Search all chats")
        await chat.pilot.press("down", "down", "enter")
        await chat.until_shown("The Rhine")
        assert "Owls" not in chat.shown and not chat.screen.query_one(Sidebar).display
        assert chat.prompt.has_focus
        await chat.pilot.press("ctrl+b", "escape")
        await chat.until(lambda: not chat.screen.query_one(Sidebar).display)
        await chat.until_shown("F2 Rounds")


async def test_every_chat_is_searched(open_chat, store, script):
    async with open_chat(script("The Rhine is long."), script("Owls"), store=store) as chat:
        await two_chats(chat)
        await chat.pilot.press("ctrl+b", *"rhi")
        await chat.until_shown("The Rhine is long.")
        assert chat.screen.query_one(OptionList).option_count == 1
        assert chat.style("Rhine").bold
        await chat.pilot.press(*"noceros")
        await chat.until_shown("No chats")
        chat.screen.query_one(Input).value = "long"
        await chat.pilot.press("enter")
        await chat.until(lambda: chat.screen.conversation.title == "Name rivers")


async def test_a_chat_is_renamed_and_deleted_and_comes_back(open_chat, store, script):
    async with open_chat(script("The Rhine"), script("Owls"), store=store) as chat:
        await two_chats(chat)
        await chat.pilot.press("ctrl+b", "down")
        await chat.until_shown("F2 Rename", "Del Delete")
        await chat.pilot.press("f2")
        await chat.until(lambda: chat.screen.query_one(Input).value == "Name birds")
        await chat.until_shown("Esc Keep the old title", "Enter Rename")
        await chat.pilot.press(*"!", "enter")
        await chat.until_shown("Name birds!")
        await chat.pilot.press("down", "delete")
        await chat.until_shown("Deleted; Ctrl+Z")
        assert [each.title for each in store.chats()] == ["Name rivers"]
        assert chat.screen.conversation.turns == [] and "Owls" not in chat.shown
        await chat.until_shown("^Z Undo")
        await chat.pilot.press("ctrl+z")
        await chat.until_shown("Name birds!")
        assert len(store.chats()) == 2


async def test_the_last_line_says_how_to_come_back(open_chat, tmp_path, script):
    path = tmp_path / "chats.sqlite"
    async with open_chat(script("The Rhine"), script("Owls"), store=ChatStore(path)) as chat:
        await chat.until(lambda: chat.screen.phase == "ready")
        assert farewell(chat.screen) == ""
        await two_chats(chat)
        stored = f"is stored in {path}.\ndspark chat"
        assert farewell(chat.screen) == f'"Name birds" {stored} --continue goes on with it.'
        await chat.ask("/load Name rivers")
        await chat.until(lambda: chat.screen.conversation.title == "Name rivers")
        assert farewell(chat.screen) == f'"Name rivers" {stored} --session 1 goes on with it.'
        await chat.pilot.press("ctrl+n")
        assert farewell(chat.screen) == f'"Name rivers" {stored} --session 1 goes on with it.'


async def test_a_chat_that_is_not_stored_says_so_at_its_end(open_chat, script):
    async with open_chat(script("The Rhine")) as chat:
        await chat.asked_and_answered("Name rivers")
        assert farewell(chat.screen) == wording.NOT_STORED


async def test_a_narrow_terminal_has_the_list_alone(open_chat, store, script):
    async with open_chat(script("The Rhine"), store=store, size=(50, 16)) as chat:
        await chat.asked_and_answered("Name rivers")
        await chat.pilot.press("ctrl+b")
        await chat.until_shown("Name rivers", "Enter Open")
        assert "The Rhine" not in chat.shown


async def test_a_prompt_without_an_answer_returns_to_the_box(open_chat, store):
    from dspark.chat.conversation import Turn

    chat_id = store.add_chat("Killed")
    store.begin_turn(chat_id, None, Turn("What was I asking?"), "demo")
    async with open_chat(store=store, first_chat=chat_id) as chat:
        await chat.until(lambda: chat.prompt.text == "What was I asking?")
        assert chat.screen.shown == []


async def test_a_damaged_file_is_named_on_the_screen(open_chat, tmp_path):
    (path := tmp_path / "bad.sqlite").write_bytes(b"x" * 5000)
    store = ChatStore(path)
    async with open_chat(store=store, size=(120, 24)) as chat:
        await chat.until_shown("bad.sqlite was damaged and is kept as bad-damaged-")
    store.close()


async def test_chats_become_files_and_come_back(open_chat, store, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = script("The", ([" Rhine"], [" Po"], "!"), thinking=())
    async with open_chat(answer, store=store) as chat:
        await chat.asked_and_answered("Name\nrivers")
        await chat.ask("/save rivers.md")
        await chat.until_shown("Saved")
        await chat.ask("/save rivers.json")
        await chat.until((tmp_path / "rivers.json").exists)
        events = store.load(1).turns[0].events
        await chat.ask("/load rivers.json")
        await chat.until(lambda: chat.screen.conversation.saved_id == 2)
        assert store.load(2).turns[0].events == events
        (tmp_path / "other.json").write_text("[1]")
        await chat.ask("/load other.json")
        await chat.until_shown("is not a chat of dspark")
    text = (tmp_path / "rivers.md").read_text()
    assert text == "# Name rivers\n\n*Model:* demo\n\n> Name\n> rivers\n\nThe Rhine!\n"
    exported = json.loads((tmp_path / "rivers.json").read_text())
    assert exported["turns"][0]["answer"] == "The Rhine!" and exported["model"] == "demo"


@pytest.mark.parametrize(
    ("told", "shown"), [("big\n7b", "big 7b"), ("", "unknown"), (None, "unknown")]
)
async def test_a_chat_from_a_file_shows_the_model_that_the_file_tells(
    open_chat, store, script, tmp_path, told, shown
):
    chat_file = tmp_path / "rivers.json"
    async with open_chat(script("The Rhine"), store=store, size=(120, 30)) as chat:
        await chat.asked_and_answered("Name rivers")
        await chat.ask(f"/save {chat_file}")
        await chat.until(chat_file.exists)
        exported = json.loads(chat_file.read_text()) | {"model": told}
        if told is None:
            del exported["model"]
        chat_file.write_text(json.dumps(exported))
        await chat.ask(f"/load {chat_file}")
        await chat.until(lambda: chat.screen.conversation.saved_id == 2)
        await chat.pilot.press("ctrl+b")
        await chat.until_shown(f"· {shown}", "· demo")


async def test_a_chat_is_named_and_loaded_by_its_name(open_chat, store, script):
    async with open_chat(script("The Rhine"), script("Owls"), store=store) as chat:
        await two_chats(chat)
        await chat.ask("/save Ornithology")
        await chat.until_shown("This chat is called Ornithology now.")
        await chat.ask("/save out.txt")
        await chat.until_shown("Files end in .md or .json.")
        assert chat.screen.conversation.title == "Ornithology"
        await chat.ask("/load rivers")
        await chat.until_shown("The Rhine")
        await chat.ask("/load ornithology")
        await chat.until_shown("Owls")
        await chat.ask("/load fish")
        await chat.until_shown("No chat is called fish.")
        assert chat.prompt.text == "/load fish"


async def test_an_unwritable_store_costs_a_line_not_the_answer(open_chat, store, script):
    async with open_chat(script("The Rhine"), store=store) as chat:
        store._database.execute("PRAGMA query_only = ON")
        await chat.asked_and_answered("Name rivers")
        await chat.until_shown("The Rhine", "could not be read or written")
