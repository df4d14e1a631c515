"""The loop without a screen: the same backend, answers on stdout and everything else on stderr."""

import io
import signal
from dataclasses import replace

import pytest

from dspark.errors import DownloadError, InputError
from dspark_cli.plain_chat import run_plain_chat
from dspark_tui.backend import ChatSettings, ContextFullError


@pytest.fixture
def talk(backend, capsys):
    """talk(b"first line\\nsecond", script, ...): what came out on stdout and stderr."""

    def run(prompts: bytes | io.BytesIO, *scripts, system: str = ""):
        backend.scripts += scripts
        stdin = prompts if isinstance(prompts, io.BytesIO) else io.BytesIO(prompts)
        run_plain_chat(backend, ChatSettings(system=system), stdin)
        return capsys.readouterr()

    return run


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def test_stdout_is_the_answers_and_nothing_else(talk, backend, script):
    out, err = talk(b"One\n\nTwo", script("It is", ([" one"], [" two"], ".")), script("Two."))
    assert out == "It is one.\nTwo.\n"
    assert "τ 2.00" in err and "context 15/8,192" in err and ">" not in err
    assert [message["content"] for message in backend.asked[1]] == ["One", "It is one.", "Two"]
    assert backend.is_closed


def test_a_terminal_gets_pictures_of_control_characters_and_a_pipe_the_text(
    talk, script, monkeypatch
):
    answer = ("a\x1b[2Jb\x07\n", ([" c\x9b"],))
    assert talk(b"Hi\n", script(*answer)).out == "a\x1b[2Jb\x07\n c\x9b\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert talk(b"Hi\n", script(*answer)).out == "a␛[2Jb␇\n c\ufffd\n"


def test_an_empty_answer_is_said_and_not_kept(talk, backend, script):
    out, err = talk(b"One\nTwo\n", script(""), script("Ho"))
    assert out == "\nHo\n" and err.splitlines()[1].endswith("no answer")
    assert backend.asked[1] == [{"role": "user", "content": "Two"}]


def test_a_system_text_comes_first(talk, backend, script):
    talk(b"Hi\n", script("Ho"), system="Be brief.")
    assert backend.asked[0][0] == {"role": "system", "content": "Be brief."}


def test_no_prompt_no_answer(talk, backend):
    out, _ = talk(b"")
    assert out == "" and backend.is_closed


def test_a_person_gets_a_prompt_sign_on_stderr(talk, script):
    out, err = talk(Terminal(b"Hi\n"), script("Ho"))
    assert out == "Ho\n" and err.count("> ") == 2


def test_bytes_that_are_not_utf8_end_it_with_one_line(talk, backend, script):
    with pytest.raises(InputError, match="not UTF-8") as caught:
        talk("Grüße\n".encode("latin-1"), script("Ho"))
    assert caught.value.hint and backend.is_closed and backend.asked == []


def test_unicode_goes_in_and_out(talk, backend, script):
    out, _ = talk("日本語?\n".encode(), script("はい", (["。"], [], "👍")))
    assert out == "はい。👍\n"
    assert backend.asked[0][0]["content"] == "日本語?"


def test_ctrl_c_stops_the_answer_and_the_loop_goes_on(talk, backend, script, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    play = backend._play

    def interrupted(played):
        for number, event in enumerate(play(played)):
            yield event
            if number == 1:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(backend, "_play", interrupted)
    long = script("The", ([" end"], [], " is"), ([" never"], [], " near"))
    out, err = talk(b"One\nTwo\n", long, script("Short"))
    assert out == "The end is\nShort\n"
    assert "stopped" in err
    assert [message["content"] for message in backend.asked[1]] == ["One", "The end is", "Two"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_the_program(talk, backend, script, monkeypatch):
    def interrupted_twice(played):
        yield from ()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(backend, "_play", interrupted_twice)
    with pytest.raises(KeyboardInterrupt):
        talk(b"One\n", script("The"))
    assert backend.is_closed


def test_ctrl_c_at_the_prompt_ends_the_program(talk, backend):
    class Interrupted(Terminal):
        def readline(self, size: int | None = -1) -> bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk(Interrupted())
    assert backend.is_closed


TOO_LONG = ContextFullError("the conversation has 9 tokens, the context holds 8", "Shorten it.")


def test_in_a_pipe_a_prompt_too_long_ends_it(talk, script):
    with pytest.raises(InputError, match="context holds 8"):
        talk(b"One\nTwo\n", script("", error=TOO_LONG), script("Never"))


def test_a_person_may_go_on_after_a_prompt_too_long(talk, script):
    out, err = talk(Terminal(b"One\nTwo\n"), script("", error=TOO_LONG), script("Fine"))
    assert out.split() == ["Fine"]
    assert "dspark: the conversation has 9 tokens, the context holds 8. Shorten it.\n" in err


def test_a_full_context_is_said_after_the_answer(talk, capsys, script):
    with pytest.raises(InputError, match="context is full"):
        talk(b"One\nTwo\n", replace(script("Cut"), reason="context"), script("Never"))
    assert capsys.readouterr().out == "Cut\n"


def test_loading_that_fails_is_raised(talk, backend):
    backend.load_errors = [DownloadError("no network", "Check the connection.")]
    with pytest.raises(DownloadError):
        talk(b"One\n")
    assert backend.is_closed
