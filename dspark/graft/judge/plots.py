"""Plots of a grafting: OUT/plots/*.png from OUT/training/metrics.jsonl. Needs matplotlib."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dspark.atomic import replacing
from dspark.errors import InputError, StorageError
from dspark.extras import install_command
from dspark.graft.train.metrics import Line, of_kind, read_metrics

Axes = Any  # matplotlib's
PARTS = (("cross_entropy", "cross-entropy"), ("l1", "L1 distance"), ("confidence", "confidence"))
TRAINED: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.5}
HELD_OUT: dict[str, Any] = {"marker": "o", "markersize": 3}


def draw_run(out: Path) -> list[Path]:
    """Raises InputError if matplotlib is missing or there is nothing to draw."""
    lines = _read(out / "training" / "metrics.jsonl")
    drawn = [
        _save(out / "plots" / "loss.png", lambda axes: _loss(axes, lines), "step", "loss"),
        _save(out / "plots" / "tau.png", lambda axes: _tau(axes, lines), "step", "expected τ"),
        _save(
            out / "plots" / "acceptance.png",
            lambda axes: _acceptance(axes, lines),
            "step",
            "held-out acceptance",
        ),
    ]
    calibrations = [line for line in of_kind(lines, "calibration") if "sampled" in line]
    for kind, name in (("sampled", "reliability"), ("greedy", "reliability-greedy")):
        if not calibrations:
            break
        drawn.append(
            _save(
                out / "plots" / f"{name}.png",
                partial(_reliability, calibration=calibrations[-1][kind]),
                "predicted survival",
                "observed survival",
            )
        )
    return drawn


def _read(path: Path) -> list[Line]:
    lines = read_metrics(path)
    if not of_kind(lines, "step"):
        raise InputError(f"there is no step in {path} to draw", "Train first.")
    return lines


def _loss(axes: Axes, lines: Sequence[Line]) -> None:
    for number, (key, name) in enumerate(PARTS):
        _trained_and_held_out(axes, lines, key, name, f"C{number}")


def _tau(axes: Axes, lines: Sequence[Line]) -> None:
    _trained_and_held_out(axes, lines, "tau", "τ at temperature 1", "C0")


def _trained_and_held_out(
    axes: Axes, lines: Sequence[Line], key: str, name: str, colour: str
) -> None:
    for kind, label, style in (
        ("step", f"{name}, trained on", TRAINED),
        ("held_out", f"{name}, held out", HELD_OUT),
    ):
        records = [line for line in of_kind(lines, kind) if key in line]
        steps = [line["step"] for line in records]
        axes.plot(steps, [line[key] for line in records], color=colour, label=label, **style)


def _acceptance(axes: Axes, lines: Sequence[Line]) -> None:
    records = of_kind(lines, "held_out")
    steps = [line["step"] for line in records]
    rates = zip(*(line["acceptance_by_position"] for line in records), strict=True)
    for position, rates_there in enumerate(rates, start=1):
        axes.plot(steps, rates_there, label=f"position {position}", **HELD_OUT)


def _reliability(axes: Axes, calibration: Line) -> None:
    """Dotted before the fit, solid after; perfect calibration is the grey diagonal."""
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for when, style in (("before", ":"), ("after", "-")):
        for position, figures in enumerate(calibration[when]):
            bins = figures["bins"]
            promised = [b["survival"] for b in bins]
            survived = [b["accepted"] for b in bins]
            label = f"position {position + 1}, ECE {figures['ece']:.1%} {when}"
            axes.plot(promised, survived, style, color=f"C{position}", marker=".", label=label)


def _save(path: Path, draw: Callable[[Axes], None], across: str, upward: str) -> Path:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "no plots were drawn: matplotlib is missing", "Install it: " + install_command("plots")
        ) from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel=across, ylabel=upward)
    draw(axes)
    axes.legend(fontsize="small")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            figure.savefig(partial, format="png", dpi=120)
    except OSError as error:
        raise StorageError(f"could not write {path} ({error})", "Free some space.") from error
    return path
