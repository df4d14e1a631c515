"""A Python program in a terminal of its own."""

import os
import pty
import select
import subprocess
import sys
import termios
import time
from typing import IO, Any

import psutil

# Far below what threads are busy for, far above what a slow machine needs to quit.
BUSY_SECONDS, BOUND_SECONDS, PATIENCE_SECONDS = 60, 8, 40


class TerminalProgram:
    """Keys go in by `write`; `said` is all that has come out."""

    def __init__(self, program: str, *arguments: str, stdout: IO[bytes] | None = None) -> None:
        self._master, self._slave = pty.openpty()
        self.before = self.modes()
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=self._slave,
            stdout=stdout or self._slave,
            stderr=self._slave,
            env=environment,
            preexec_fn=self._own_terminal,
        )
        self.said = b""
        self._seen = 0

    def _own_terminal(self) -> None:
        """So that Ctrl+C is a signal to the program alone."""
        os.setsid()
        os.close(os.open(os.ttyname(self._slave), os.O_RDWR))

    def __enter__(self) -> "TerminalProgram":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._slave)
        os.close(self._master)

    def until(self, text: bytes) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while text not in self.said:
            assert time.monotonic() < end, self.said[-2000:]
            self._read(0.1)
        self._seen = max(self._seen, self.said.index(text) + len(text))

    def until_again(self, text: bytes) -> None:
        """Once more behind what was waited for last."""
        end = time.monotonic() + PATIENCE_SECONDS
        while text not in self.said[self._seen :]:
            assert time.monotonic() < end, self.said[-2000:]
            self._read(0.1)
        self._seen = self.said.index(text, self._seen) + len(text)

    def write(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def interrupt_when_idle(self) -> None:
        """Ctrl+C once the program waits for a key: a signal that comes while readline draws the
        last one is kept until the next."""
        program = psutil.Process(self.process.pid)
        end = time.monotonic() + PATIENCE_SECONDS
        while program.status() != psutil.STATUS_SLEEPING:
            assert time.monotonic() < end, program.status()
            time.sleep(0.01)
        self.write(b"\x03")

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def seconds_to_end(self) -> float:
        start = time.monotonic()
        while self.process.poll() is None and time.monotonic() - start < BUSY_SECONDS:
            self._read(0.02)
        seconds = time.monotonic() - start
        while self._read(0.0):
            pass
        return seconds

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        self.said += os.read(self._master, 65536)
        return True
