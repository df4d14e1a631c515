"""The tests that elsewhere run in Triton's interpreter, on the card itself."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from gpu_parts.setting import TAIL, Record, Setting

ROOT = Path(__file__).parents[2]
FOLDERS = ("tests/kernels/interpreted", "tests/engine/interpreted")
REHEARSED = "tests/kernels/interpreted/test_norm.py"
# plugins that the project's settings name may not be there
OPTIONS = (
    "-o", "addopts=", "-W", "ignore::pytest.PytestConfigWarning", "--import-mode=importlib",
    "-p", "no:cacheprovider", "-q", "--tb=short", "--maxfail=40",
)  # fmt: skip
FAILURE = re.compile(r"^(?:FAILED|ERROR) (\S+)(?: - (.*))?$", re.MULTILINE)
COUNT = re.compile(r"(\d+) (passed|failed|skipped|error)")


def run_tests(setting: Setting) -> Iterator[Record]:
    if find_spec("pytest") is None:
        yield {"skipped": "pytest is not installed"}
        return
    for folder in setting.cases([REHEARSED] if setting.is_tiny else FOLDERS):
        yield run_folder(folder, setting)


def run_folder(folder: str, setting: Setting) -> Record:
    paths = os.pathsep.join(str(ROOT / name) for name in (".", "kernels", "tui"))
    command = [sys.executable, "-m", "pytest", *OPTIONS, folder]
    environment = {**os.environ, "PYTHONPATH": paths}
    started, left = time.time(), max(setting.seconds_left, 1.0)
    try:
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=left
        )
    except subprocess.TimeoutExpired as error:
        told = (error.stdout or b"")[-TAIL:].decode("utf-8", errors="replace")
        return {"tests": folder, "stopped": f"the time was up: {told}"}
    counts = {word: int(number) for number, word in COUNT.findall(run.stdout[-400:])}
    record: Record = {"tests": folder, "seconds": time.time() - started, **counts}
    record["failures"] = [f"{name}: {reason}" for name, reason in FAILURE.findall(run.stdout)]
    if run.returncode and not record["failures"]:
        record["error"] = (run.stdout + run.stderr)[-TAIL:]
    return record | {"ok": run.returncode == 0}
