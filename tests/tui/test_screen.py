"""Loading, the palette, the help, narrow terminals and how the chat ends."""

import pytest

from dspark.errors import DownloadError
from dspark.events import FetchProgress
from dspark_tui.screens.help import HelpScreen
from dspark_tui.themes import DARK, LIGHT, theme_for_terminal
from dspark_tui.widgets.loading import describe
from dspark_tui.wording import capitalised


async def test_the_first_frame_stands_before_the_model_is_loaded(open_chat, backend):
    backend.is_held = True
    async with open_chat() as chat:
        await chat.until_shown("dspark", "Loading demo", "accepted draft")
        backend.release(1)
        await chat.until_shown("target.safetensors · 40 of 98 MB", "41%")
        backend.release(1)
        await chat.until_shown("Reading the model", "33%")
        assert chat.screen.phase == "loading"
        backend.release(1)
        await chat.until_shown("demo is ready on cpu float32", "Sampling: greedy", "Ask something")
        await chat.until(lambda: "Reading the model" not in chat.shown)


async def test_a_prompt_typed_while_loading_is_kept_and_sent(open_chat, backend, script):
    backend.is_held = True
    async with open_chat(script("Hello")) as chat:
        await chat.pilot.press("H", "i", "enter")
        await chat.until_shown("Hi", "waits until the model is loaded")
        assert backend.asked == []
        backend.release(10)
        await chat.until_shown("Hello")
        assert backend.asked[0][0]["content"] == "Hi"


async def test_half_a_prompt_survives_loading(open_chat, backend):
    backend.is_held = True
    async with open_chat() as chat:
        await chat.pilot.press("H", "a", "l", "f")
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        assert chat.prompt.text == "Half" and backend.asked == []


async def test_escape_takes_a_waiting_prompt_back(open_chat, backend):
    backend.is_held = True
    async with open_chat() as chat:
        await chat.ask("Hi")
        await chat.until_shown("waits until")
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.prompt.text == "Hi")
        assert "waits until" not in chat.shown


async def test_a_new_chat_gives_a_waiting_prompt_back(open_chat, backend):
    backend.is_held = True
    async with open_chat() as chat:
        await chat.ask("Hi")
        await chat.until_shown("waits until", "Esc Take back")
        await chat.pilot.press("ctrl+n")
        await chat.until(lambda: "waits until" not in chat.shown)
        assert chat.prompt.text == "Hi"


async def test_a_waiting_prompt_stays_readable_when_loading_fails_while_another_is_typed(
    open_chat, backend
):
    backend.load_errors = [DownloadError("no network", "Check the connection.")]
    backend.is_held = True
    async with open_chat() as chat:
        await chat.ask("First")
        await chat.until_shown("waits until")
        chat.prompt.put("Second")
        backend.release(3)
        await chat.until_shown("First", "not answered", "✗ No network")
        assert chat.prompt.text == "Second"


async def test_failed_loading_is_one_line_and_enter_tries_again(open_chat, backend, script):
    backend.load_errors = [DownloadError("no network", "Check the connection.")]
    backend.is_held = True
    async with open_chat(script("Hello")) as chat:
        await chat.ask("Hi")
        backend.release(3)
        await chat.until_shown("✗ No network", "Check the connection.")
        assert chat.prompt.text == "Hi"
        await chat.pilot.press("enter")
        backend.release(10)
        await chat.until_shown("Hello")


async def test_enter_tries_again_without_a_prompt_too(open_chat, backend):
    backend.load_errors = [DownloadError("no network", "Check the connection.")]
    async with open_chat() as chat:
        await chat.until_shown("✗ No network", "Enter tries to load again")
        await chat.pilot.press("enter")
        await chat.until(lambda: chat.screen.phase == "ready")


@pytest.mark.parametrize("size", [(40, 24), (40, 12), (24, 12)])
async def test_a_narrow_terminal_stays_usable(open_chat, script, size):
    async with open_chat(script("The", ([" capital"], [" Lyon"], " Paris")), size=size) as chat:
        await chat.asked_and_answered("Which one?")
        await chat.until_shown("Paris", "τ 2.00")
        assert chat.prompt.region.width > 20 and chat.prompt.region.bottom <= size[1]
        await chat.pilot.press("x")
        await chat.until(lambda: chat.prompt.text == "x")


async def test_at_forty_columns_everything_is_said(open_chat, script):
    steps = ([" capital"], [" Lyon"], " Paris")
    async with open_chat(script("The", steps), size=(40, 20)) as chat:
        await chat.until_shown("demo", "accepted", "rejected", "own")
        await chat.asked_and_answered("Which one?")
        await chat.until_shown("40.0 tok/s", "τ 2.00", "2.0v", "15/8,192")


async def test_resizing_keeps_the_chat(open_chat, script):
    async with open_chat(script("The", ([" capital"], [], " Paris"))) as chat:
        await chat.asked_and_answered("Which one?")
        await chat.pilot.resize_terminal(44, 16)
        await chat.until_shown("The capital Paris", "τ 2.00")


async def test_an_answer_that_loops_is_noticed_and_left_as_it_is(open_chat, backend, script):
    backend.is_held = True
    verse = ("Day and night, ", "night and day, ", "on and on it goes. ")
    steps = [([], [], piece) for piece in verse * 8]
    async with open_chat(script("So: ", *steps)) as chat:
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("Sing")
        backend.release(10)
        await chat.until_shown("on and on it goes. Day and night")
        assert "repeats itself" not in chat.shown
        backend.release(10)
        await chat.until_shown("The answer repeats itself: Esc stops it")
        backend.release(40)
        await chat.until_shown("tok/s · τ 1.00 · repeats itself")
        assert chat.screen.conversation.turns[0].text == "So: " + "".join(verse) * 8


async def test_the_palette_has_the_chats_commands(open_chat, script):
    async with open_chat(script("The", ([], [" Lyon"], " Paris")), size=(80, 44)) as chat:
        await chat.asked_and_answered("Go")
        await chat.pilot.press("ctrl+p")
        await chat.until_shown("New chat", "Hide rejected drafts", "Shade by confidence")
        await chat.until_shown("Which command?", "The chat stays stored")
        assert "application" not in chat.shown
        await chat.pilot.press(*"hide rej")
        await chat.until(lambda: "Shade by" not in chat.shown)
        await chat.until_shown("Hide rejected drafts")
        await chat.pilot.press("enter")
        await chat.until(lambda: not chat.screen.view.show_rejected)
        await chat.until_shown("The Paris")


async def test_a_screenshot_lands_in_this_folder(open_chat, script, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    async with open_chat(script("The", ([], [" Lyon"], " Paris"))) as chat:
        await chat.asked_and_answered("Go")
        await chat.pilot.press("ctrl+p", *"save scr")
        await chat.until_shown("Save screenshot")
        await chat.until(lambda: "New chat\n" not in chat.shown)
        await chat.pilot.press("enter")
        await chat.until_shown("Saved dspark-")
    (picture,) = tmp_path.iterdir()
    assert picture.suffix == ".svg" and "Lyon" in picture.read_text()


async def test_a_screenshot_that_cannot_be_written_is_a_message(open_chat, monkeypatch, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    async with open_chat() as chat:
        chat.app.action_save()
        await chat.until_shown("could not be", "No such file")


async def test_the_last_answer_is_copied_without_refused_drafts(open_chat, script):
    async with open_chat(script("The", ([], [" Lyon"], " Paris"))) as chat:
        await chat.asked_and_answered("Go")
        chat.screen.action_copy_answer()
        assert chat.app.clipboard == "The Paris"


async def test_selecting_text_copies_the_answer_alone(open_chat, script):
    async with open_chat(script("The", ([], [" Lyon"], " Paris"))) as chat:
        await chat.asked_and_answered("Go")
        chat.screen.text_select_all()
        await chat.pilot.pause()
        selected = chat.screen.get_selected_text()
        assert "The Paris" in selected and "Lyon" not in selected


async def test_help_explains_and_closes(open_chat):
    async with open_chat(size=(80, 60)) as chat:
        await chat.pilot.press("f1")
        await chat.until(lambda: isinstance(chat.app.screen, HelpScreen))
        await chat.until_shown("Marks", "Figures", "Keys", "Ctrl+Q", "Esc closes")
        assert chat.style("rejected").strike
        await chat.pilot.press("escape")
        await chat.until(lambda: not isinstance(chat.app.screen, HelpScreen))


async def test_page_keys_scroll_the_conversation(open_chat, script):
    text = script("Begin\n", *[([], [], f"line {i}\n") for i in range(60)])
    async with open_chat(text) as chat:
        await chat.asked_and_answered("Go")
        await chat.until_shown("line 59")
        await chat.pilot.press("pageup", "pageup", "pageup", "pageup")
        await chat.until_shown("Begin")
        await chat.pilot.press(*["pagedown"] * 4)
        await chat.until_shown("line 59")


async def test_ctrl_q_stops_a_running_answer_and_quits(open_chat, backend, script):
    backend.is_held = True
    async with open_chat(script("The", *[([], [], " word")] * 50)) as chat:
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("Go")
        backend.release(3)
        await chat.until_shown("The word")
        await chat.pilot.press("ctrl+q")
        await chat.until(lambda: not chat.app.is_running)
    assert chat.app.return_code == 0
    assert backend.is_cancelled


async def test_both_palettes_keep_the_signs_readable(open_chat, script):
    async with open_chat(script("The", ([" capital"], [" Lyon"], " Paris"))) as chat:
        await chat.asked_and_answered("Go")
        for theme in (DARK, LIGHT):
            chat.app.theme = theme.name
            await chat.pilot.pause()
            for word in ("capital", "Lyon", "Paris", "tok/s", "3 tokens"):
                style = chat.style(word)
                assert contrast(style) >= 4.5, f"{word} in {theme.name}: {contrast(style):.1f}"
        await chat.pilot.press("ctrl+t")
        for theme in (DARK, LIGHT):
            chat.app.theme = theme.name
            await chat.pilot.pause()
            assert contrast(chat.style("capital")) >= 4.5, theme.name


def contrast(style) -> float:
    """WCAG 2 contrast ratio."""
    light, dark = sorted((luminance(style.color), luminance(style.bgcolor)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color) -> float:
    parts = [channel / 255 for channel in color.triplet]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    ("said", "theme"), [("", DARK), ("15;0", DARK), ("0;15", LIGHT), ("0;default;7", LIGHT)]
)
def test_the_palette_follows_the_terminals_background(monkeypatch, said, theme):
    monkeypatch.setenv("COLORFGBG", said)
    assert theme_for_terminal() is theme


@pytest.mark.parametrize(
    ("done", "total", "said"),
    [
        (0, 98_000_000, "0 of 98 MB"),
        (40_000_000, 98_000_000, "40 of 98 MB"),
        (10_000_000, 16_400_000_000, "0.01 of 16.40 GB"),
        (300_000, 5_000_000, "0.3 of 5.0 MB"),
        (500, 4_000, "0 of 4 kB"),
        (3, 100, "3 of 100 bytes"),
        (0, 0, "preparing"),
        (5, None, "preparing"),
    ],
)
def test_sizes_have_the_unit_in_which_they_are_seen_to_grow(done, total, said):
    assert describe(FetchProgress("model", done, total)) == f"model · {said}"


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("the disk is full", "The disk is full"),
        ("it's gone", "It's gone"),
        ("http://127.0.0.1:80/v1 answered 500", "http://127.0.0.1:80/v1 answered 500"),
        ("qwen3-4b is not loaded yet", "qwen3-4b is not loaded yet"),
        ("~/models is gone", "~/models is gone"),
        ("", ""),
    ],
)
def test_names_and_addresses_keep_their_first_letter(sentence, shown):
    assert capitalised(sentence) == shown


@pytest.mark.parametrize("width", [24, 40, 60, 80, 110])
@pytest.mark.parametrize("phase", ["loading", "ready", "answering"])
async def test_the_line_of_keys_is_cut_at_no_word(open_chat, backend, script, width, phase):
    backend.is_held = True
    async with open_chat(script("The", ([], [], " end")), size=(width, 24)) as chat:
        if phase != "loading":
            backend.release(3)
            await chat.until(lambda: chat.screen.phase == "ready")
        if phase == "answering":
            await chat.ask("Go")
            backend.release(1)
            await chat.until_shown("The")
        await chat.pilot.pause()
        line = chat.shown.splitlines()[-1].strip()
        whole = (
            "Esc Stop",
            "F1 Help",
            "F2 Rounds",
            "^N New chat",
            "^B Chats",
            "^O Marks",
            "^R Rejected",
            "^T Shading",
            "^P Commands",
        )
        parts = line.split("  ")
        assert set(parts) <= {*whole, "^Q Quit"} and "F1 Help" in parts
        assert ("Esc Stop" in parts) == (phase == "answering")


async def test_a_click_on_a_key_presses_it(open_chat):
    async with open_chat() as chat:
        await chat.until_shown("demo is ready")
        await chat.pilot.click("KeyLine", offset=(3, 0))
        await chat.until(lambda: isinstance(chat.app.screen, HelpScreen))


async def test_a_server_has_no_drafts_to_hide(open_chat, backend):
    backend.has_drafter = False
    async with open_chat() as chat:
        await chat.until_shown("demo is ready", "^P Commands")
        assert "Rejected" not in chat.shown and "Shading" not in chat.shown
