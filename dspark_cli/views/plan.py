"""The plan of a grafting as lines of text."""

from typing import TYPE_CHECKING

from dspark.plural import counted
from dspark_cli.views.graft_lines import duration_text

if TYPE_CHECKING:
    from dspark.graft.estimate import Duration, Span
    from dspark.graft.plan import Plan


def plan_lines(plan: "Plan") -> list[str]:
    memory, disk = plan.memory, plan.disk
    memory_sizes = {
        "target": memory.target,
        "head": memory.head,
        "optimizer": memory.optimizer,
        "taps": memory.taps,
        "loss": memory.loss,
        "judging": memory.decoding,
    }
    if memory.answers > memory.training:  # written first, in a separate session
        memory_sizes = {"writing answers": memory.answers}
    memory_sizes["program"] = memory.program
    disk_sizes = {"answers": disk.answers, "checkpoint": disk.checkpoint, "head": disk.head}
    disk_sizes |= {"taps": disk.taps} if disk.taps else {}
    lines = [f"{item.name}: {item.value} ({item.reason})" for item in plan.items]
    lines += [
        _answers(plan),
        f"memory: about {_size(memory.total)} ({_sizes(memory_sizes)})",
        f"disk: at most {_size(sum(disk_sizes.values()))} ({_sizes(disk_sizes)})",
    ]
    return lines if plan.duration is None else [*lines, _time(plan.duration)]


def _answers(plan: "Plan") -> str:
    missing = f"{plan.num_answers:,}, {plan.num_missing:,} of them still to be written"
    if not plan.num_too_long:
        return f"answers: {missing}"
    are = "is" if plan.num_too_long == 1 else "are"
    too_long = counted(plan.num_too_long, "prompt")
    return f"answers: {missing}; {too_long} {are} longer than --length leaves room for"


def _time(duration: "Duration") -> str:
    measured = [counted(duration.measured_rounds, "round")] if duration.measured_rounds else []
    measured.append(counted(duration.measured_steps, "step"))
    return (
        f"time: at most {_range(duration.answers)} of answers and about "
        f"{_range(duration.steps)} of steps (from {' and '.join(measured)} just measured)"
    )


def _range(span: "Span") -> str:
    """The median and the range that holds half of the measurements."""
    low, middle, high = map(duration_text, (span.low, span.middle, span.high))
    return middle if low == high else f"{middle} ({low} to {high})"


def _sizes(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {_size(size)}" for name, size in parts.items())


def _size(num_bytes: int) -> str:
    mebibytes = num_bytes / 2**20
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.1f} MiB"
