"""The loop without a screen: the same backend, answers on stdout and everything else on stderr."""

import io
import signal
from dataclasses import replace

import pytest

from dspark.chat.backend import ChatSettings, ContextFullError
from dspark.config import SamplingConfig
from dspark.errors import DownloadError, InputError
from dspark_cli.plain_chat import run_plain_chat
from tests.tui.terminal import BOUND_SECONDS, TerminalProgram


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


@pytest.mark.parametrize("kind", [io.BytesIO, Terminal])
def test_a_file_that_a_prompt_names_is_put_behind_it(talk, backend, script, tmp_path, kind):
    (tmp_path / "notes.txt").write_text("Buy milk.\n")
    prompt = f"Shorten @{tmp_path}/notes.txt"
    out, err = talk(kind(prompt.encode()), script("Milk."))
    assert out == "Milk.\n" and f"+ {tmp_path}/notes.txt, 9 bytes" in err
    sent = f"{prompt}\n\n{tmp_path}/notes.txt:\n```txt\nBuy milk.\n```"
    assert backend.asked == [[{"role": "user", "content": sent}]]


def test_a_file_that_is_missing_is_named_and_a_person_goes_on(talk, backend, script):
    with pytest.raises(InputError, match=r"there is no file gone\.txt"):
        talk(b"Read @gone.txt\n")
    out, err = talk(Terminal(b"Read @gone.txt\nHi\n"), script("Ho"))
    assert out == "Ho\n" and "there is no file gone.txt" in err


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
    assert "stopped" in err and backend.num_cancels == 1
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


def test_an_answer_that_fills_the_context_says_so_and_the_next_prompt_goes_on(
    talk, backend, script
):
    cut = replace(script("Cut"), reason="context")
    backend.most_messages = 2
    out, err = talk(b"One\nTwo\n", cut, script("Fine"))
    assert out == "Cut\nFine\n"
    assert "stopped: the context is full; the next prompt leaves out the oldest" in err
    assert "the model no longer sees the oldest prompt and its answer." in err
    assert [message["content"] for message in backend.asked[1]] == ["Two"]


def test_the_greeting_says_how_answers_are_sampled(talk, backend):
    assert "demo is ready (greedy)." in talk(b"").err
    backend.own_sampling = SamplingConfig(0.6, 20, 0.95)
    assert "demo is ready (temperature 0.6, top-k 20, top-p 0.95)." in talk(b"").err
    backend.own_sampling = None  # a server's own business
    assert "demo is ready." in talk(b"").err


@pytest.mark.parametrize("kind", [io.BytesIO, Terminal])
def test_a_first_prompt_comes_before_those_on_stdin(backend, capsys, script, kind):
    backend.scripts += [script("A"), script("B")]
    run_plain_chat(backend, ChatSettings(prompts=("/bin is what?",)), kind(b"Two\n"))
    captured = capsys.readouterr()
    assert captured.out == "A\nB\n"
    assert ("> /bin is what?" in captured.err) == (kind is Terminal)


@pytest.mark.parametrize("word", [b"/bye", b"/exit", b"/quit"])
def test_a_person_quits_by_a_command(talk, backend, word):
    out, _ = talk(Terminal(word + b"\nHi\n"))
    assert out == "" and backend.asked == [] and backend.is_closed


def test_a_person_gets_help_and_hints(talk, backend, script):
    _, err = talk(Terminal(b"/help\n/?\n/hepl\n/usr/bin\n"), script("Programs"))
    assert err.count("/bye             Quit") == 2
    assert "There is no command /hepl. Did you mean /help?" in err
    assert [messages[-1]["content"] for messages in backend.asked] == ["/usr/bin"]


def test_in_a_pipe_every_line_is_a_prompt(talk, backend, script):
    talk(b"/help\n/bye\n", script("A"), script("B"))
    assert [messages[-1]["content"] for messages in backend.asked] == ["/help", "/bye"]


def test_ctrl_c_at_the_prompt_warns_before_it_ends_the_program(talk, backend, script, capsys):
    class Once(Terminal):
        interrupts = 1

        def readline(self, size: int | None = -1) -> bytes:
            if self.interrupts:
                self.interrupts -= 1
                raise KeyboardInterrupt
            return super().readline(size)

    out, err = talk(Once(b"Hi\n"), script("Ho"))
    assert out == "Ho\n" and "Ctrl+C again quits" in err


PROGRAM = """
import sys
from dspark.config import SamplingConfig
from dspark_cli.plain_chat import run_plain_chat
from dspark.chat.backend import BackendInfo, ChatSettings
from dspark.events import DecodeStats, Finished, PrefillProgress, Piece

class Backend:
    name = "demo"
    info = BackendInfo("de\x1b]0;x\x07mo", 512, "cpu", "float32", True, sampling=SamplingConfig())
    def load(self): return iter(())
    def answer(self, messages, sampling, stop):
        text = "<" + messages[-1]["content"] + ">\x1b[31m"
        yield PrefillProgress(0, 5, 5, (Piece(1, text, False),))
        yield PrefillProgress(0, 5, 5, (Piece(1, "\x1b[32mhmm", False, is_thinking=True),))
        yield Finished(0, "stop_token", (), text, DecodeStats(5, 1, 0, 0, 0, 0, 0.1, 0.0))
    def tell_probabilities(self, tells): pass
    def use_effort(self, effort): pass
    def cancel(self): pass
    def close(self): pass

run_plain_chat(Backend(), ChatSettings(), sys.stdin.buffer)
"""


def converse(terminal: TerminalProgram) -> None:
    terminal.until(b"> ")
    terminal.write(b"abc\x1b[D\x1b[DX\r")  # two to the left, then an X
    terminal.until_again(b"1 token")
    terminal.until_again(b"> ")
    terminal.write(b"\x1b[A\r")  # up: the same once more
    terminal.until_again(b"1 token")
    terminal.until_again(b"> ")


def test_a_person_has_line_editing_and_history_and_no_raw_escapes():
    with TerminalProgram(PROGRAM) as terminal:
        converse(terminal)
        terminal.write(b"\x04")
        assert terminal.seconds_to_end() < BOUND_SECONDS and terminal.process.returncode == 0
    assert terminal.said.count(b"<aXbc>") == 2
    assert b"\x1b[31m" not in terminal.said and b"\x1b]0;" not in terminal.said
    assert b"\x1b[32m" not in terminal.said
    assert "␛[31m".encode() in terminal.said


def test_with_stdout_in_a_file_editing_stays_and_the_file_has_the_answers_alone(tmp_path):
    answers = tmp_path / "answers.txt"
    with answers.open("wb") as stdout, TerminalProgram(PROGRAM, stdout=stdout) as terminal:
        converse(terminal)
        terminal.write(b"/bye\r")
        assert terminal.seconds_to_end() < BOUND_SECONDS and terminal.process.returncode == 0
        assert b"\x1b[32m" not in terminal.said
    assert answers.read_bytes() == b"<aXbc>\x1b[31m\n" * 2


def test_ctrl_c_clears_a_typed_line_and_quits_an_empty_one_the_second_time():
    with TerminalProgram(PROGRAM) as terminal:
        terminal.until(b"> ")
        terminal.write(b"half a line")
        terminal.until(b"half a line")
        terminal.interrupt_when_idle()
        terminal.until_again(b"> ")
        assert b"again quits" not in terminal.said
        terminal.interrupt_when_idle()
        terminal.until(b"Ctrl+C again quits")
        terminal.until_again(b"> ")
        terminal.interrupt_when_idle()
        assert terminal.seconds_to_end() < BOUND_SECONDS
        assert terminal.process.returncode != 0


def test_loading_that_fails_is_raised(talk, backend):
    backend.load_errors = [DownloadError("no network", "Check the connection.")]
    with pytest.raises(DownloadError):
        talk(b"One\n")
    assert backend.is_closed
