"""Ctrl+G: the prompt in an editor of the user's own."""

import sys
from contextlib import nullcontext

import pytest
from textual import events

from dspark_tui.app import DSparkApp

LINES = "\n".join(f"line {number}" for number in range(20))


@pytest.fixture
def use_editor(monkeypatch, tmp_path):
    """use_editor(statements): a program that has the text of the file as `text`."""
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    # Terminals of tests cannot be given to another program.
    monkeypatch.setattr(DSparkApp, "suspend", lambda app: nullcontext())

    def use(statements: str, variable: str = "EDITOR") -> None:
        program = tmp_path / f"{variable}.py"
        program.write_text(
            "import sys\nfrom pathlib import Path\n"
            f"text = Path(sys.argv[1]).read_text()\n{statements}\n"
            "Path(sys.argv[1]).write_text(text)\n"
        )
        monkeypatch.setenv(variable, f"{sys.executable} -S {program}")

    return use


async def opened(chat, text: str = "") -> None:
    await chat.until(lambda: chat.screen.phase == "ready")
    await chat.pilot.press(*text, "ctrl+g")
    await chat.pilot.pause()


async def test_the_text_comes_back_changed_and_is_sent(open_chat, backend, script, use_editor):
    use_editor("text = text.upper() + '\\nmore\\n'")
    async with open_chat(script("Yes")) as chat:
        await opened(chat, "why")
        assert chat.prompt.text == "WHY\nmore"
        await chat.pilot.press("ctrl+z")
        assert chat.prompt.text == "why"
        await chat.pilot.press("ctrl+y", "enter")
        await chat.until_shown("Yes")
    assert backend.asked[0][-1]["content"] == "WHY\nmore"


async def test_visual_is_taken_before_editor(open_chat, use_editor):
    use_editor("text = 'editor'")
    use_editor("text = 'visual'", "VISUAL")
    async with open_chat() as chat:
        await opened(chat)
        assert chat.prompt.text == "visual"


async def test_a_paste_is_whole_in_the_editor_and_folded_behind_it(open_chat, use_editor):
    use_editor(f"assert text == {LINES!r}\ntext = 'Sum up:\\n' + text")
    async with open_chat() as chat:
        await chat.until(lambda: chat.screen.phase == "ready")
        chat.app.post_message(events.Paste(LINES))
        await chat.until_shown("[Pasted text, 20 lines]")
        await opened(chat)
        assert chat.prompt.text == "Sum up:\n[Pasted text, 20 lines]"


@pytest.mark.parametrize(
    ("editor", "said"),
    [
        ("", "No editor is set. Set VISUAL or EDITOR, as in EDITOR=nano."),
        ("no-such-editor", "no-such-editor failed: No such file or directory."),
        (f"{sys.executable} -S -c 'raise SystemExit(3)'", "ended with status 3."),
        ("'", "failed: No closing quotation."),
    ],
    ids=["none", "missing", "failing", "unreadable"],
)
async def test_a_failure_is_a_line_and_the_text_stays(
    open_chat, use_editor, monkeypatch, editor, said
):
    if editor:
        monkeypatch.setenv("EDITOR", editor)
    async with open_chat() as chat:
        await opened(chat, "why")
        assert said.lower() in chat.screen.hint.text.lower() and chat.screen.hint.is_error
        assert chat.prompt.text == "why"


async def test_where_no_terminal_can_be_given_away_it_says_so(open_chat, monkeypatch):
    monkeypatch.setenv("VISUAL", "true")
    async with open_chat() as chat:
        await opened(chat, "why")
        assert "needs a terminal of its own" in chat.screen.hint.text
        assert chat.prompt.text == "why"
