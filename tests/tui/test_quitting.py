"""Quitting gives the shell back at once, whatever a thread is in the middle of."""

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

# Far below what the threads are busy for, far above what a slow machine needs to quit.
BUSY_SECONDS, BOUND_SECONDS, PATIENCE_SECONDS = 60, 8, 40

PROGRAM = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from dspark.events import FetchProgress, LoadProgress, PrefillProgress, Piece
from dspark_tui.app import run_chat
from dspark_tui.backend import BackendInfo, ChatSettings

BUSY, PHASE = float(sys.argv[1]), sys.argv[2]

class Backend:
    name = "demo"
    info = BackendInfo("demo", 512, "cpu", "float32", True)

    def load(self):
        yield LoadProgress("reading the target", 0, 3)
        if PHASE == "fetching":
            with open(sys.argv[3], "wb") as part:
                part.write(b"half")
                part.flush()
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

    def cancel(self): pass
    def close(self): pass

run_chat(Backend(), ChatSettings(first_prompt="Go"))
"""
SHOWN = {
    "loading": b"Reading the target",
    "fetching": b"wheel",
    "asking": b"Reading the target",
    "reading": b"reading the prompt",
    "answering": b"Word",
}


class Terminal:
    """The program in a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        self.slave = slave
        self.said = b""

    def until(self, text: bytes) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while text not in self.said:
            assert time.monotonic() < end, self.said[-2000:]
            self.read(0.1)

    def read(self, seconds: float) -> None:
        if select.select([self.master], [], [], seconds)[0]:
            self.said += os.read(self.master, 65536)

    def write(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def seconds_to_end(self) -> float:
        start = time.monotonic()
        while self.process.poll() is None and time.monotonic() - start < BUSY_SECONDS:
            self.read(0.02)
        seconds = time.monotonic() - start
        self.read(0.0)
        return seconds

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self.slave)
        os.close(self.master)


@pytest.mark.parametrize("phase", list(SHOWN))
def test_the_shell_is_back_at_once(phase, tmp_path):
    part = tmp_path / "wheel.part"
    terminal = Terminal(str(BUSY_SECONDS), phase, str(part))
    try:
        terminal.until(SHOWN[phase])
        terminal.write(b"\x11")
        assert terminal.seconds_to_end() < BOUND_SECONDS
        assert terminal.process.returncode == 0
        # The screen is the shell's again, and so are the keys.
        assert terminal.said.rindex(b"\x1b[?1049l") > terminal.said.rindex(b"\x1b[?1049h")
        assert termios.tcgetattr(terminal.slave) == terminal.before
        assert b"Traceback" not in terminal.said
    finally:
        terminal.close()
    if phase == "fetching":
        assert part.read_bytes() == b"half"
