"""Sections in processes of their own: one that hangs, or breaks the device, ends alone.

Every record is appended to the results' .jsonl file by the process that made it, as it is made.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpu_parts.sections import SECTIONS
from gpu_parts.setting import Record, Setting
from gpu_parts.stand_ins import use_stand_ins

BROKEN = 75  # an exit code
GRACE_SECONDS = 10  # for a process to finish its current work; the next section has less for it


def make_setting(
    options: argparse.Namespace, share: tuple[int, int], deadline: float, first_case: int = 0
) -> Setting:
    """deadline: as time.time has it."""
    import torch

    device = torch.device("cpu" if options.interpret else "cuda")
    return Setting(
        device, options.interpret, deadline, options.bandwidth, share, options.deepspec, first_case
    )


def make_records(name: str, setting: Setting) -> Iterator[Record]:
    """Records of one section, made in this process, until its deadline."""
    import torch

    torch.manual_seed(0)
    with torch.inference_mode():
        for record in SECTIONS[name].records(setting):
            yield record
            if setting.seconds_left <= 0:
                yield {"stopped": f"{name}: its time was up"}
                return


def work(options: argparse.Namespace) -> int:
    """A process that a section was given to: a line of JSON per record. BROKEN: the device failed,
    and what is left of the section needs another process."""
    name, index, count, first_case, file = options.worker
    use_stand_ins(options.stand_ins)
    setting = make_setting(options, (int(index), int(count)), options.seconds, int(first_case))
    with Path(file).open("a", encoding="utf-8") as lines:
        # a process is told the time itself: what it takes to start is the section's
        for record in make_records(name, setting):
            facts = {"section": name, "process": int(index), "case": setting.progress.case}
            facts |= {"stand_ins": options.stand_ins} if options.stand_ins else {}
            lines.write(json.dumps(facts | record) + "\n")
            lines.flush()
            if "error" in record and is_broken(setting):
                return BROKEN
    return 0


def is_broken(setting: Setting) -> bool:
    """After an illegal access a process can use the device no more."""
    import torch

    if setting.device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


class Worker:
    """One process of a section, begun again behind the case that broke the device."""

    def __init__(self, name: str, index: int, count: int, file: Path, command: list[str]) -> None:
        self.name, self.index, self.error = name, index, ""
        self._count, self._file, self._command = count, file, command
        self._started = file.stat().st_size if file.exists() else 0
        self._start(0)

    def _start(self, first_case: int) -> None:
        given = [self.name, str(self.index), str(self._count), str(first_case), str(self._file)]
        environment = {**os.environ, **SECTIONS[self.name].environment}
        self._process = subprocess.Popen([*self._command, "--worker", *given], env=environment)

    def is_running(self, deadline: float) -> bool:
        code = self._process.poll()
        if code is None and time.time() < deadline:
            return True
        if code is None:
            self._process.kill()
            self._process.wait()
            self.error = "hung, and was ended"
        elif code == BROKEN and time.time() < deadline - GRACE_SECONDS:
            mine = [r for r in lines_from(self._file, self._started) if r["process"] == self.index]
            self._start(mine[-1]["case"] + 1)
            return True
        elif code != 0:
            self.error = str(code)
        return False


def in_processes(
    name: str, count: int, deadline: float, options: argparse.Namespace, script: str
) -> list[Record]:
    """The section's records from `count` processes; those that hang are ended."""
    with tempfile.TemporaryDirectory() as folder:
        file = options.lines or Path(folder) / "records.jsonl"
        begin = file.stat().st_size if file.exists() else 0
        command = [sys.executable, script, "--seconds", str(deadline), *passed_on(options)]
        workers = [Worker(name, index, count, file, command) for index in range(count)]
        running = workers
        while running := [each for each in running if each.is_running(deadline + GRACE_SECONDS)]:
            time.sleep(0.02)
        records = lines_from(file, begin)
    facts = ("section", "process", "case")
    records = [{k: v for k, v in each.items() if k not in facts} for each in records]
    failed = [each for each in workers if each.error]
    return records + [
        {"ok": False, "error": f"process {each.index} of {name}: {each.error}"} for each in failed
    ]


def lines_from(file: Path, begin: int) -> list[Record]:
    """Whole lines after the first `begin` bytes; a process that was ended may leave half of one."""
    if not file.exists():
        return []
    lines = file.read_bytes()[begin:].decode("utf-8", errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def passed_on(options: argparse.Namespace) -> Sequence[str]:
    arguments = ["--bandwidth", str(options.bandwidth)]
    arguments += ["--interpret"] if options.interpret else []
    arguments += ["--stand-ins", *options.stand_ins] if options.stand_ins else []
    return [*arguments, "--deepspec", str(options.deepspec)] if options.deepspec else arguments
