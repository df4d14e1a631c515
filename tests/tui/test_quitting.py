"""Quitting gives the shell back at once, whatever a thread is in the middle of."""

import time
from pathlib import Path

import psutil
import pytest

from tests.tui.terminal import BOUND_SECONDS, BUSY_SECONDS, PATIENCE_SECONDS, TerminalProgram

PROGRAM = """
import subprocess, sys, time
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
                child = subprocess.Popen(["sleep", str(BUSY)])  # as pip would fetch
                open(sys.argv[3] + ".pid", "w").write(str(child.pid))
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
