"""How soon a first answer comes, and in how much memory, beside another checkout of dspark.

python benchmarks/start.py --json benchmarks/results/start-cpu.json [--other CHECKOUT]

Needs the demo pair (dspark pull demo) and, for the chat, tmux. Figures are medians over processes
of their own, in turns with the other checkout's, on the same Python packages: `imports` is what
`generate` imports up to its first token, timed alone; `ready` the time to open the pair after
that; `chat` is from Enter on the command line to the first word of an answer whose question was
typed while the chat started. Peaks are of resident memory, as Linux counts it.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from dspark.bench.document import provenance, write_document

HERE = Path(__file__).parents[1]
PROMPT = "Write a story about the sea."
BARS = {"help": 0.3, "imports": 0.9, "ready": 1.0, "generate": 1.6, "chat": 3.0}  # seconds
PEAK_BAR = 600e6  # bytes, of a chat with an answer
PATIENCE_SECONDS, POLL_SECONDS = 60.0, 0.01
LIST_IMPORTS = """
import sys
from dspark_cli.main import run
assert run({arguments!r}) == 0
print(*[name for name in sys.modules if name != "__main__"], file=sys.stderr)
"""
IMPORT_ALL = """
import importlib, sys, time
begun = time.perf_counter()
for name in {names!r}:
    try:
        importlib.import_module(name)
    except ImportError:  # of modules that others make
        pass
imported = time.perf_counter()
from dspark.config import PairChoice
from dspark.engine.session import open_session
from dspark.hub.find_files import find_files
from dspark.progress import follow
follow(open_session(follow(find_files(PairChoice("demo")))))
print(imported - begun, time.perf_counter() - imported)
"""
RATE = re.compile(r"[1-9][0-9.]* tok/s")
Environment = Mapping[str, str]


def environment_of(checkout: Path) -> dict[str, str]:
    """In which this checkout's code runs, wherever the installed package points."""
    folders = (checkout, checkout / "tui", checkout / "kernels")
    kept = {name: value for name, value in os.environ.items() if "BYTECODE" not in name}
    # the current folder, which may be another checkout, is not searched
    return {**kept, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(map(str, folders))}


def run(environment: Environment, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def seconds_of(environment: Environment, *arguments: str) -> float:
    begun = time.perf_counter()
    run(environment, "-m", "dspark_cli", *arguments)
    return time.perf_counter() - begun


def imports_of(environment: Environment) -> list[str]:
    """The names of all modules that an answer imports, in their order."""
    code = LIST_IMPORTS.format(arguments=["generate", PROMPT, "--max-tokens", "1"])
    return run(environment, "-c", code).stderr.splitlines()[-1].split()


def chat_once(environment: Environment) -> tuple[float, int]:
    """Seconds to the first word, and the peak of resident memory in bytes once some were said."""
    session = f"start-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        script, pid = Path(folder) / "chat", Path(folder) / "pid"
        settings = [f"export {name}={shlex.quote(environment[name])}" for name in environment]
        chat = shlex.join([sys.executable, "-m", "dspark_cli", "chat", "demo"])
        script.write_text("\n".join([*settings, f"echo $$ > {pid}", f"exec {chat}"]))
        _tmux("new-session", "-d", "-s", session, "-x100", "-y40", "sh")
        try:
            _tmux("send-keys", "-t", session, "-l", f"sh {script}")
            begun = time.perf_counter()
            _tmux("send-keys", "-t", session, "Enter")
            _until(lambda: "demo" in _screen(session))  # a key before that is the shell's
            for keys in (("-l", PROMPT), ("Enter",)):
                _tmux("send-keys", "-t", session, *keys)
            _until(lambda: RATE.search(_screen(session)) is not None)  # from the first round on
            took = time.perf_counter() - begun
            time.sleep(1.0)
            return took, _peak(int(pid.read_text()))
        finally:
            _tmux("kill-session", "-t", session)


def _tmux(*arguments: str) -> str:
    command = ["tmux", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _screen(session: str) -> str:
    return _tmux("capture-pane", "-p", "-t", session)


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + PATIENCE_SECONDS
    while not is_so():
        if time.perf_counter() > deadline:
            sys.exit("the chat did not answer")
        time.sleep(POLL_SECONDS)


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def measure(environment: Environment, names: list[str], found: dict[str, list[float]]) -> None:
    """One run of everything, added to `found`."""

    def note(what: str, value: float) -> None:
        found.setdefault(what, []).append(value)
        print(f"  {what:12} {value:.3f}", flush=True)

    note("help", seconds_of(environment, "--help"))
    imports, ready = map(
        float, run(environment, "-c", IMPORT_ALL.format(names=names)).stdout.split()
    )
    note("imports", imports)
    note("ready", ready)
    note("generate", seconds_of(environment, "generate", PROMPT, "--max-tokens", "25"))
    if shutil.which("tmux"):
        seconds, peak = chat_once(environment)
        note("chat", seconds)
        note("chat_peak_mb", peak / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--other", type=Path, metavar="CHECKOUT")
    parser.add_argument("--trials", type=int, default=5)
    arguments = parser.parse_args()
    checkouts = {"this": HERE} | ({"other": arguments.other} if arguments.other else {})
    environments = {name: environment_of(path) for name, path in checkouts.items()}
    names = {name: imports_of(each) for name, each in environments.items()}  # warms up, too
    trials: dict[str, dict[str, list[float]]] = {name: {} for name in checkouts}
    for _ in range(arguments.trials):
        for name, environment in environments.items():
            print(name, flush=True)
            measure(environment, names[name], trials[name])
    medians = {
        name: {what: statistics.median(values) for what, values in each.items()}
        for name, each in trials.items()
    }
    document: dict[str, Any] = {
        "bars": {**BARS, "chat_peak_mb": PEAK_BAR / 1e6},
        "medians": medians,
        "trials": trials,
        "imported_modules": {name: len(each) for name, each in names.items()},
        "load_average": os.getloadavg(),
    }
    print(json.dumps(medians, indent=1))
    if arguments.json:
        command = shlex.join(["python", *sys.argv])
        write_document(arguments.json, document | provenance(command))


if __name__ == "__main__":
    main()
