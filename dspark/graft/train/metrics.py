"""The figures of a run, in OUT/training/metrics.jsonl."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from dspark.atomic import replacing
from dspark.graft.train.out_of_memory import bytes_in_use
from dspark.graft.train.trainer import StepReport

Line = dict[str, Any]


def read_metrics(path: Path) -> list[Line]:
    """Skips a truncated last line; yields nothing without a file."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def of_kind(lines: Sequence[Line], kind: str) -> list[Line]:
    return [line for line in lines if line["kind"] == kind]


def step_figures(report: StepReport) -> dict[str, Any]:
    pace = report.tokens / report.seconds
    return asdict(report) | {"tokens_per_second": pace, "memory_bytes": bytes_in_use()}


class MetricsFile:
    """JSON lines; those of steps that a resumed run will take again are dropped. Nothing is written
    unless `writes`."""

    def __init__(self, path: Path, first_step: int, *, writes: bool = True) -> None:
        self._file: TextIO | None = None
        if not writes:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        if first_step and path.exists():
            whole = path.read_text().split("\n")[:-1]
            lines = [line for line in whole if json.loads(line)["step"] <= first_step]
        with replacing(path) as partial:
            partial.write_text("".join(line + "\n" for line in lines))
        self._file = path.open("a")

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, kind: str, figures: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"kind": kind, **figures}) + "\n")
            self._file.flush()
