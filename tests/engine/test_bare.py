"""A machine with PyTorch, Triton and transformers, as GPUs are often lent, runs the engine."""

import os
import subprocess
import sys
from pathlib import Path

from dspark.hub import PairFiles
from tests.engine.pairs import GOLDEN, decode, golden, request


def test_the_engine_runs_without_what_only_the_programs_around_it_need(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "DSPARK_HOME"}
    command = [sys.executable, str(Path(__file__).parent / "bare.py"), str(GOLDEN / "vanilla")]
    run = subprocess.run(
        command,
        env={**environment, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    ours = tuple(map(int, run.stdout.split()))
    assert ours == decode(golden("vanilla").engine, [request((12, 21, 34), 24)])[0]


def test_what_is_imported_late_is_all_there():
    import dspark.hub as hub

    assert {name for names in hub._HOMES.values() for name in names} == set(hub.__all__)
    assert all(getattr(hub, name) is not None for name in hub.__all__)
    assert hub.PairFiles is PairFiles
