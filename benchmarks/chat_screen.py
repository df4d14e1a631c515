"""What the chat's screen costs while a fast answer is written, in a terminal of its own.

python benchmarks/chat_screen.py [--json benchmarks/results/chat-screen-cpu.json]

A trace of rounds of three tokens is played at 2,000 tok/s into the real app in a pseudo-terminal
of 100 x 40. `frame_gaps` are the seconds between two pictures that the terminal gets, `late` how
much later than asked for the event loop wakes up, as a key would. The share of a core is of the
whole process: screen, store in memory and the thread that plays the trace.
"""

import argparse
import asyncio
import fcntl
import itertools
import json
import os
import pty
import resource
import shlex
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from dspark.bench.document import provenance, write_document
from dspark.chat.backend import BackendInfo, ChatEvent
from dspark.chat.replay import ReplayBackend
from dspark.chat.running_stats import NOTHING_YET, add_event
from dspark.chat.trace import TracedAnswer
from dspark.events import Finished, Piece, PrefillProgress, Round
from dspark_tui.app import run_app
from dspark_tui.replay import ReplayApp

TOKENS, RATE, PER_ROUND = 20_000, 2_000.0, 3
COLUMNS, ROWS = 100, 40
BARS = {"share_of_a_core": 0.30, "peak_mb": 300.0, "longest_frame_gap": 0.100}
PROMPT = "Go"


def traced_answer() -> TracedAnswer:
    """Sentences of 90 tokens, with a refused draft in every round."""
    first = PrefillProgress(0, 2, 2, (Piece(1, "Once", False),))
    events: list[tuple[float, ChatEvent]] = [(0.0, first)]
    text, stats = "Once", add_event(NOTHING_YET, first)
    for index in range(TOKENS // PER_ROUND):
        event = round_of(index)
        text += "".join(piece.text for piece in event.pieces)
        stats = add_event(stats, event)
        events.append(((index + 1) * PER_ROUND / RATE, event))
    events.append((events[-1][0], Finished(0, "max_tokens", (), text, stats)))
    info = BackendInfo("script", 32_768, "cpu", "float32", True)
    return TracedAnswer(PROMPT, info, tuple(events))


def round_of(index: int) -> Round:
    own = ".\n" if index % 30 == 29 else ","
    drafts = [Piece(2, word, True, 0.9) for word in (f" word{index}", " and", " no")]
    return Round(
        request_id=0,
        index=index,
        anchor=1,
        draft=(2, 2, 2),
        confidence=(0.9, 0.9, 0.4),
        verified=3,
        accepted=2,
        next=3,
        pieces=(*drafts[:2], Piece(3, own, False)),
        rejected=(drafts[2],),
        context_tokens=3 + PER_ROUND * index,
        draft_seconds=0.0005,
        verify_seconds=0.0009,
        seconds=PER_ROUND / RATE,
    )


class MeasuredApp(ReplayApp):
    def __init__(self, backend: ReplayBackend, report: Path) -> None:
        super().__init__(backend)
        self.report = report
        self.pictures: list[float] = []
        self.late: list[float] = []

    def on_mount(self) -> None:
        super().on_mount()
        self.watching = asyncio.create_task(self._watch())

    def post_display_hook(self) -> None:
        self.pictures.append(time.monotonic())

    async def _watch(self) -> None:
        while not hasattr(self, "chat") or self.chat.turn is None:
            await asyncio.sleep(0.01)
        begun, busy = time.monotonic(), time.process_time()
        while self.chat.turn is not None:
            asked = time.monotonic() + 0.005
            await asyncio.sleep(0.005)
            self.late.append(time.monotonic() - asked)
        ended, work = time.monotonic(), time.process_time() - busy
        self._write(begun, ended, work)
        self.exit()

    def _write(self, begun: float, ended: float, work: float) -> None:
        at = [begun, *(each for each in self.pictures if begun < each <= ended)]
        gaps = [after - before for before, after in itertools.pairwise(at)]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found = {
            "tokens_per_second": TOKENS / (ended - begun),
            "share_of_a_core": work / (ended - begun),
            "peak_mb": peak / 1e6,
            "pictures_per_second": len(gaps) / (ended - begun),
            "median_frame_gap": statistics.median(gaps),
            "longest_frame_gap": max(gaps),
            "p99_late": statistics.quantiles(self.late, n=100)[98],
            "longest_late": max(self.late),
        }
        self.report.write_text(json.dumps(found))


def in_a_terminal() -> dict[str, float]:
    """Runs this file's other half in a pseudo-terminal, and reads what it draws."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    drawn: list[bytes] = []
    threading.Thread(target=_drain, args=(master, drawn), daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, __file__, "--report", str(report)]
        subprocess.run(
            command, env=environment, stdin=slave, stdout=slave, stderr=slave, check=True
        )
        if not report.exists():
            sys.exit(b"".join(drawn)[-4000:].decode(errors="replace"))
        found: dict[str, float] = json.loads(report.read_text())
    return found


def _drain(master: int, drawn: list[bytes]) -> None:
    while part := os.read(master, 1 << 16):
        drawn.append(part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.report:
        run_app(MeasuredApp(ReplayBackend([traced_answer()]), arguments.report))
        return
    trials = [in_a_terminal() for _ in range(arguments.trials)]
    medians = {name: statistics.median(each[name] for each in trials) for name in trials[0]}
    print(json.dumps(medians, indent=1))
    if arguments.json:
        document: dict[str, Any] = {"bars": BARS, "medians": medians, "trials": trials}
        document["load_average"] = os.getloadavg()
        command = shlex.join(["python", *sys.argv])
        write_document(arguments.json, document | provenance(command))


if __name__ == "__main__":
    main()
