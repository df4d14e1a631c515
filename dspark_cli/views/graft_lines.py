"""The events of a grafting as lines of text."""

from typing import TYPE_CHECKING

from dspark.config import GraftConfig
from dspark.plural import counted

if TYPE_CHECKING:
    from dspark.checkpoints.head_config import HeadConfig
    from dspark.graft.job import GraftEvent, Prepared, Regrafted
    from dspark.graft.judge.acceptance import Evaluation
    from dspark.graft.judge.calibrate import Calibrated, Fit
    from dspark.graft.judge.speedup import Speedup
    from dspark.graft.train.trainer import StepReport


def lasting_lines(event: "GraftEvent", config: GraftConfig) -> list[str]:
    """Lines worth keeping on the screen; none for a step or stage in progress."""
    from dspark.graft import job
    from dspark.graft.data.corpus import CorpusProgress
    from dspark.graft.judge.acceptance import Evaluation
    from dspark.graft.judge.calibrate import Calibrated
    from dspark.graft.judge.speedup import Speedup

    if isinstance(event, CorpusProgress):
        return list(event.notes)
    if isinstance(event, job.Prepared):
        return _prepared_lines(event, config)
    if isinstance(event, job.Validated):
        return [f"held out at step {event.report.step}: {figures(event.report)}"]
    if isinstance(event, Evaluation):
        return [_evaluation_line(event)]
    if isinstance(event, job.Regrafted):
        return _regraft_lines(event)
    if isinstance(event, Calibrated):
        return _calibration_lines(event)
    if isinstance(event, Speedup):
        return _measured_lines(event)
    if isinstance(event, job.Stopped):
        return [f"stopped at step {event.step}; re-run the same command to resume"]
    return []


def figures(report: "StepReport") -> str:
    rates = " ".join(f"{rate:.2f}" for rate in report.acceptance_by_position)
    return (
        f"tau {report.tau:.3f}, acceptance {rates}, CE {report.cross_entropy:.3f}, "
        f"L1 {report.l1:.3f}, confidence {report.confidence:.3f}"
    )


def duration_text(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _evaluation_line(event: "Evaluation") -> str:
    rates = " ".join(f"{rate:.3f}" for rate in event.acceptance_by_position)
    return (
        f"greedy decoding of {counted(event.prompts, 'held-out prompt')}: tau {event.tau:.3f} over "
        f"{counted(event.rounds, 'round')}, acceptance by position {rates}"
    )


def _regraft_lines(event: "Regrafted") -> list[str]:
    """A table of both heads; a draft's share is of the rounds that reached it."""
    heads = (("began with", event.before), ("trained", event.after))
    depth = max(len(each.acceptance_by_position) for _, each in heads)
    titles = ["head", "tau", *(f"draft {k + 1}" for k in range(depth))]
    rows = [titles]
    for name, each in heads:
        rates = [f"{rate:.0%}" for rate in each.acceptance_by_position]
        rows.append([name, f"{each.tau:.3f}", *rates, *["-"] * (depth - len(rates))])
    widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
    return [
        "  ".join(
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _calibration_lines(event: "Calibrated") -> list[str]:
    return [
        *calibration_lines(event.sampled, "answers at temperature 1"),
        *calibration_lines(event.greedy, "greedy answers"),
    ]


def calibration_lines(fit: "Fit", kind: str) -> list[str]:
    errors = ", ".join(
        f"{before.ece:.1%} -> {after.ece:.1%}"
        for before, after in zip(fit.before, fit.after, strict=True)
    )
    ranking = " ".join("-" if each.auc is None else f"{each.auc:.2f}" for each in fit.after)
    noise = max(each.noise for each in fit.after)
    return [
        f"confidences calibrated for {kind}; calibration error by position, before -> after: "
        f"{errors}",
        f"how well confidences rank drafts (AUC by position, 0.5 is chance): {ranking}, over "
        f"{counted(fit.rounds, 'round')} of prompts outside the fit; with so few, even a perfect "
        f"head would show a calibration error of up to {noise:.1%}",
    ]


def _mask_lines(head: "HeadConfig", config: GraftConfig) -> list[str]:
    """An Eagle3 head has no mask."""
    reason = "as asked" if config.mask_token_id is not None else "unused by the data"
    return [f"mask token: {head.mask_token_id} ({reason})"] if head.has_mask else []


def _measured_lines(event: "Speedup") -> list[str]:
    from dspark_cli.views.bench import verdict

    lines = [verdict(event.report)]
    if event.released is not None:
        lines.append(
            f"tau on the same held-out prompts: released head {event.released.tau:.3f}, this one "
            f"{event.own.tau:.3f}"
        )
    return [*lines, event.verdict.sentence]


def _prepared_lines(event: "Prepared", config: GraftConfig) -> list[str]:
    head = event.head
    millions, mebibytes = event.parameters / 1e6, event.parameters * 2 / 2**20
    taps = "as asked" if config.taps else "evenly spaced, never the last layer"
    lines = [
        f"head: {millions:.1f} M parameters, {mebibytes:.1f} MiB in bfloat16",
        f"taps: {', '.join(map(str, head.target_layer_ids))} ({taps})",
        *_mask_lines(head, config),
        f"data: {counted(event.answers, 'answer')} to train on, {event.held_out:,} held out",
    ]
    return [*lines, f"resuming from step {event.first_step}"] if event.first_step else lines
