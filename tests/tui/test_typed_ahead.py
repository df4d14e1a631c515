"""What is typed while the chat starts is sent as what is typed later is."""

from pathlib import Path

from tests.tui.terminal import TerminalProgram

PROGRAM = """
import os, sys, time
from dspark.events import DecodeStats, Finished, PrefillProgress, Piece
from dspark_cli.commands import chat
from dspark_cli.main import main
from dspark.chat.backend import BackendInfo

class Backend:
    name = "demo"
    info = BackendInfo("demo", 512, "cpu", "float32", True)

    def load(self):
        return iter(())

    def answer(self, messages, sampling, stop):
        said = "You said " + messages[-1]["content"].upper()
        yield PrefillProgress(0, 5, 5, (Piece(1, said, False),))
        yield Finished(0, "stop_token", (), said, DecodeStats(5, 1, 0, 0, 0, 0, 0.1, 0.0))

    def tell_probabilities(self, tells): pass
    def use_effort(self, effort): pass
    def cancel(self): pass
    def close(self): pass

chat._server_backend = lambda url, model: Backend()

class Slow:  # the screen's import, which lasts until something was typed
    def find_spec(self, name, path=None, target=None):
        if name == "dspark_tui.app":
            sys.meta_path.remove(self)
            print("STARTING", flush=True)
            while not os.path.exists(typed):
                time.sleep(0.01)

sys.meta_path.insert(0, Slow())
typed = sys.argv.pop()
sys.argv = ["dspark", "chat", "--server", "http://localhost:1"]
main()
"""


def test_enter_sends_what_was_typed_while_the_chat_started(tmp_path: Path) -> None:
    typed = tmp_path / "typed"
    with TerminalProgram(PROGRAM, str(typed)) as terminal:
        terminal.until(b"STARTING")
        terminal.write(b"hi there\r")
        terminal.until(b"hi there^M")  # the terminal's echo: it has the keys
        typed.touch()
        terminal.until(b"You said HI THERE")
        terminal.write(b"\x11")
        terminal.seconds_to_end()
        assert terminal.process.returncode == 0 and terminal.modes() == terminal.before
