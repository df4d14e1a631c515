"""The plan of a grafting as lines of text."""

from typing import TYPE_CHECKING

from dspark.plural import counted

if TYPE_CHECKING:
    from dspark.graft.plan import Duration, Plan


def plan_lines(plan: "Plan") -> list[str]:
    memory, disk = plan.memory, plan.disk
    parts = {
        "target": memory.target,
        "head": memory.head,
        "optimizer": memory.optimizer,
        "taps": memory.taps,
        "loss": memory.loss,
    }
    kept = {"answers": disk.answers, "checkpoint": disk.checkpoint, "head": disk.head}
    kept |= {"taps": disk.taps} if disk.taps else {}
    lines = [f"{item.name}: {item.value} ({item.reason})" for item in plan.items]
    lines += [
        f"answers: {plan.num_answers:,}, {plan.num_missing:,} of them still to be written",
        f"memory: about {_size(memory.total)} ({_sizes(parts)})",
        f"disk: at most {_size(sum(kept.values()))} ({_sizes(kept)})",
    ]
    return lines if plan.duration is None else [*lines, _time(plan.duration)]


def _time(duration: "Duration") -> str:
    return (
        f"time: at most {_minutes(duration.answers)} of answers and about "
        f"{_minutes(duration.steps)} of steps (from "
        f"{counted(duration.measured_answers, 'short answer')} and "
        f"{counted(duration.measured_steps, 'step')} just measured)"
    )


def _sizes(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {_size(size)}" for name, size in parts.items())


def _size(num_bytes: int) -> str:
    mebibytes = num_bytes / 2**20
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.1f} MiB"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
