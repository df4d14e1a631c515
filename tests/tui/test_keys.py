"""Ctrl+C, Ctrl+D and the commands that begin with a slash."""

from pathlib import Path

import pytest
from textual import events
from textual.widgets import Static

from dspark.chat.backend import ChatSettings
from dspark.chat.commands import COMMANDS, parse_command, unknown_command
from dspark_tui.app import DSparkApp
from dspark_tui.screens.help import HelpScreen
from tests.tui.conftest import Chat


async def held(chat, backend) -> None:
    backend.release(3)
    await chat.until(lambda: chat.screen.phase == "ready")


@pytest.fixture
def endless(script):
    return script("The", *[([], [], " word")] * 50)


async def test_what_is_typed_before_the_box_is_there_waits_for_it(backend):
    class EarlyApp(DSparkApp):
        def on_load(self) -> None:
            for key in "early":
                self.post_message(events.Key(key, key))

    app = EarlyApp(backend, ChatSettings())
    async with app.run_test() as pilot:
        chat = Chat(app, pilot)
        await chat.until(lambda: len(app.screen_stack) > 1)
        await pilot.press("!")
        await chat.until(lambda: chat.prompt.text == "early!")


async def test_ctrl_c_stops_the_answer_and_keeps_what_was_written(
    open_chat, backend, endless, script
):
    backend.is_held = True
    async with open_chat(endless, script("Again")) as chat:
        await held(chat, backend)
        await chat.ask("Go")
        backend.release(3)
        await chat.until_shown("The word word")
        await chat.pilot.press("ctrl+c")
        backend.release(1)
        await chat.until_shown("stopped")
        assert chat.app.is_running and backend.is_cancelled
        backend.release(5)
        await chat.asked_and_answered("More")
        assert [message["content"] for message in backend.asked[1]] == [
            "Go",
            "The word word",
            "More",
        ]


async def test_ctrl_c_on_an_empty_prompt_says_how_to_quit_and_the_second_one_does(open_chat):
    async with open_chat() as chat:
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.pilot.press("ctrl+c")
        await chat.until_shown("Ctrl+C again quits.")
        assert chat.app.is_running
        await chat.pilot.press("ctrl+c")
        await chat.until(lambda: not chat.app.is_running)
    assert chat.app.return_code == 0


async def test_two_presses_with_time_between_them_do_not_quit(open_chat):
    async with open_chat() as chat:
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.pilot.press("ctrl+c")
        await chat.until_shown("Ctrl+C again quits.")
        chat.screen.quits_until = 0.0
        await chat.pilot.press("ctrl+c")
        await chat.pilot.pause()
        assert chat.app.is_running


@pytest.mark.parametrize("phase", ["loading", "failed"])
async def test_ctrl_c_twice_quits_in_other_phases_too(open_chat, backend, phase):
    backend.is_held = phase == "loading"
    backend.load_errors = [RuntimeError("boom")]
    async with open_chat() as chat:
        await chat.until(lambda: chat.screen.phase == phase)
        await chat.pilot.press("ctrl+c", "ctrl+c")
        await chat.until(lambda: not chat.app.is_running)


async def test_an_answer_that_will_not_stop_can_be_left(open_chat, backend, endless):
    backend.is_held = True
    async with open_chat(endless) as chat:
        await held(chat, backend)
        await chat.ask("Go")
        await chat.until(lambda: backend.asked)
        await chat.pilot.press("ctrl+c", "ctrl+c")
        await chat.until_shown("Ctrl+C again quits.")
        await chat.pilot.press("ctrl+c")
        await chat.until(lambda: not chat.app.is_running)


async def test_ctrl_c_empties_the_prompt_and_ctrl_z_brings_it_back(open_chat):
    async with open_chat() as chat:
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.pilot.press(*"text", "ctrl+c")
        await chat.until(lambda: chat.prompt.text == "")
        await chat.until_shown("Cleared; Ctrl+Z brings it back.")
        await chat.pilot.press("ctrl+z")
        await chat.until(lambda: chat.prompt.text == "text")


async def test_with_text_selected_in_the_answer_ctrl_c_copies(open_chat, backend, endless):
    backend.is_held = True
    async with open_chat(endless) as chat:
        await held(chat, backend)
        await chat.ask("Go")
        backend.release(3)
        await chat.until_shown("The word word")
        chat.screen.text_select_all()
        await chat.pilot.pause()
        await chat.pilot.press("ctrl+c")
        await chat.pilot.pause()
        assert "The word word" in chat.app.clipboard
        assert not backend.is_cancelled and chat.screen.hint is None


async def test_with_text_selected_in_the_prompt_ctrl_c_copies(open_chat):
    async with open_chat() as chat:
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.pilot.press(*"text", "shift+left", "shift+left", "ctrl+c")
        await chat.pilot.pause()
        assert chat.app.clipboard == "xt" and chat.prompt.text == "text"


async def test_ctrl_c_closes_the_help(open_chat):
    async with open_chat() as chat:
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.pilot.press("f1")
        await chat.until(lambda: isinstance(chat.app.screen, HelpScreen))
        await chat.pilot.press("ctrl+c")
        await chat.until(lambda: chat.app.screen is chat.screen)
        assert chat.app.is_running


async def test_messages_stand_in_one_line_and_cover_nothing(open_chat):
    async with open_chat() as chat:
        await chat.until_shown("demo is ready")
        for number in range(5):
            chat.app.notify(f"message {number}")
        await chat.until_shown("message 4")
        assert chat.shown.count("message") == 1
        await chat.until_shown("demo is ready", "Ask something", "F1 Help")
        assert not chat.app.screen.query("Toast")


async def test_ctrl_d_quits_on_an_empty_prompt_alone(open_chat):
    async with open_chat() as chat:
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.pilot.press("a", "b", "home", "ctrl+d")
        await chat.until(lambda: chat.prompt.text == "b")
        await chat.pilot.press("ctrl+d")
        await chat.until(lambda: chat.prompt.text == "")
        assert chat.app.is_running
        await chat.pilot.press("ctrl+d")
        await chat.until(lambda: not chat.app.is_running)


@pytest.mark.parametrize("word", ["/bye", "/exit", "/quit", "/BYE", " /bye "])
@pytest.mark.parametrize("phase", ["loading", "ready", "failed"])
async def test_commands_quit_in_every_phase(open_chat, backend, word, phase):
    backend.is_held = phase == "loading"
    backend.load_errors = [RuntimeError("boom")] if phase == "failed" else []
    async with open_chat() as chat:
        await chat.until(lambda: chat.screen.phase == phase)
        await chat.ask(word)
        await chat.until(lambda: not chat.app.is_running)
    assert backend.asked == []


@pytest.mark.parametrize("word", ["/help", "/?", "/Help"])
async def test_help_is_a_command(open_chat, backend, word):
    async with open_chat() as chat:
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask(word)
        await chat.until(lambda: isinstance(chat.app.screen, HelpScreen))
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.app.screen is chat.screen)
        assert chat.prompt.text == "" and backend.asked == []


async def test_an_unknown_command_is_a_hint_and_stays_in_the_box(open_chat, backend):
    async with open_chat() as chat:
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("/hepl")
        await chat.until_shown("There is no command /hepl. Did you mean /help?")
        assert chat.prompt.text == "/hepl" and backend.asked == []
        assert chat.prompt.selected_text == "/hepl"


async def test_a_misspelt_command_with_an_argument_is_not_sent(open_chat, backend):
    async with open_chat() as chat:
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("/svae rivers")
        await chat.until_shown("There is no command /svae. Did you mean /save?")
        assert chat.prompt.selected_text == "/svae rivers" and backend.asked == []


def test_a_word_that_is_a_path_begins_a_prompt(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/bin")
    assert parse_command("/bin is what?") is None
    assert parse_command("/bib is what?").name == ""


async def test_help_shows_each_commands_argument(open_chat):
    async with open_chat() as chat:
        await chat.pilot.press("f1")
        await chat.until(lambda: isinstance(chat.app.screen, HelpScreen))
        drawn = [str(each.render()) for each in chat.app.screen.query(".meaning").results(Static)]
        for usage in COMMANDS.values():
            assert f"{usage.argument}: {usage.meaning}".removeprefix(": ") in drawn


async def test_a_path_goes_to_the_model(open_chat, backend, script):
    async with open_chat(script("Programs")) as chat:
        await chat.asked_and_answered("/usr/bin/python3")
        await chat.until_shown("Programs")
        assert backend.asked[0][-1]["content"] == "/usr/bin/python3"


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("/help", ("/help", "")),
        ("/?", ("/help", "")),
        ("/bye", ("/bye", "")),
        ("/quit\n", ("/bye", "")),
        ("/set", ("/set", "")),
        ("/set temperature 0.7", ("/set", "temperature 0.7")),
        ("/SET system You are\nkind", ("/set", "system You are\nkind")),
        ("/", ("", "")),
        ("/nothing", ("", "")),
        ("bye", None),
        ("/help me with this", None),
        ("/bye\n/bye", None),
        ("/set\ntemperature 1", None),
        ("/nothing at all", ("", "")),
        ("/attach FILE", ("", "")),
        ("/sav3 x", ("", "")),
        ("/svae/x y", None),
        ("/usr/bin", None),
        ("//", None),
        ("/* comment */", None),
        ("what is /bye?", None),
        ("/(a|b)+/", None),
        ("", None),
    ],
)
def test_a_command_is_one_word_or_takes_what_follows(text, command):
    parsed = parse_command(text)
    assert (parsed and (parsed.name, parsed.argument)) == command


def test_without_a_screen_some_commands_are_unknown():
    assert "Did you mean" not in unknown_command("/fork", in_plain=True)
    assert parse_command("/fork", in_plain=True).name == ""
    assert parse_command("/set seed 1", in_plain=True).name == "/set"
    assert parse_command("/fork 2", in_plain=True) is None
