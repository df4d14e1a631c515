"""Quitting gives the shell back at once, whatever a thread is in the middle of."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.tui.terminal import BOUND_SECONDS, BUSY_SECONDS, PATIENCE_SECONDS, TerminalProgram

PROGRAM = """
import subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from dspark.events import DecodeStats, FetchProgress, Finished, LoadProgress, PrefillProgress, Piece
from dspark_cli.commands import chat
from dspark_cli.main import main
from dspark.chat.backend import BackendInfo

BUSY, PHASE, PART = float(sys.argv[1]), sys.argv[2], sys.argv[-1]

class Backend:
    name = "demo"
    info = BackendInfo("demo", 512, "cpu", "float32", True)

    def load(self):
        yield LoadProgress("reading the model", 0, 3)
        if PHASE == "fetching":
            with open(PART, "wb") as part:
                part.write(b"half")
                part.flush()
                child = subprocess.Popen(["sleep", str(BUSY)])  # as pip would fetch
                open(PART + ".pid", "w").write(str(child.pid))
                yield FetchProgress("wheel", 1, 2)
                time.sleep(BUSY)
        if PHASE == "loading":
            time.sleep(BUSY)
        if PHASE == "asking":  # a name that is looked up: a thread that no exit would forget
            ThreadPoolExecutor().submit(time.sleep, BUSY).result()

    def answer(self, messages, sampling, stop):
        if PHASE == "reading":
            time.sleep(BUSY)
        yield PrefillProgress(0, 5, 5, (Piece(1, "Word", False),))
        if PHASE == "answering":
            time.sleep(BUSY)
        yield Finished(0, "stop_token", (), "Word", DecodeStats(5, 1, 0, 0, 0, 0, 0.1, 0.0))

    def tell_probabilities(self, tells): pass
    def use_effort(self, effort): pass
    def cancel(self): pass
    def close(self): pass

chat._server_backend = lambda url, model: Backend()
if PHASE == "plain":  # a thread that an ordinary exit would wait for
    threading.Thread(target=time.sleep, args=(BUSY,)).start()
how = ["--plain"] if PHASE == "plain" else []
sys.argv = ["dspark", "chat", *how, "--server", "http://localhost:1", "Go now"]
main()
"""
SHOWN = {
    "loading": b"Reading the model",
    "fetching": b"wheel",
    "asking": b"Reading the model",
    "reading": b"reading the prompt",
    "answering": b"Word",
}


def test_the_plain_chat_ends_at_once_too_and_loses_no_word(tmp_path):
    with TerminalProgram(PROGRAM, str(BUSY_SECONDS), "plain") as terminal:
        terminal.until(b"Word")
        terminal.until_again(b"> ")
        terminal.write(b"/bye\r")
        assert terminal.seconds_to_end() < BOUND_SECONDS
        assert terminal.process.returncode == 0


def test_output_into_a_pipe_is_whole():
    """What is still in a buffer when the process ends."""
    program = PROGRAM.replace("Word", "Word" * 5000)
    arguments = [sys.executable, "-c", program, str(BUSY_SECONDS), "plain"]
    done = subprocess.run(arguments, capture_output=True, input=b"", timeout=BOUND_SECONDS)
    assert done.returncode == 0 and done.stdout == b"Word" * 5000 + b"\n"


@pytest.mark.parametrize("phase", list(SHOWN))
def test_the_shell_is_back_at_once(phase, tmp_path):
    part = tmp_path / "wheel.part"
    with TerminalProgram(PROGRAM, str(BUSY_SECONDS), phase, str(part)) as terminal:
        terminal.until(SHOWN[phase])
        terminal.write(b"\x11")
        assert terminal.seconds_to_end() < BOUND_SECONDS
        assert terminal.process.returncode == 0
        # The screen is the shell's again, and so are the keys.
        assert terminal.said.rindex(b"\x1b[?1049l") > terminal.said.rindex(b"\x1b[?1049h")
        assert terminal.modes() == terminal.before
        assert b"Traceback" not in terminal.said
    if phase == "fetching":
        assert part.read_bytes() == b"half"
        end = time.monotonic() + PATIENCE_SECONDS
        while children(tmp_path):
            assert time.monotonic() < end, "what was started for the fetch goes on alone"
            time.sleep(0.05)


def children(folder: Path) -> list[psutil.Process]:
    try:
        child = psutil.Process(int((folder / "wheel.part.pid").read_text()))
        return [] if child.status() == psutil.STATUS_ZOMBIE else [child]
    except psutil.NoSuchProcess:
        return []
