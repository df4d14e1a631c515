"""A probe's report as lines of text."""

from typing import TYPE_CHECKING

from dspark.plural import counted

if TYPE_CHECKING:
    from dspark.hub.catalog.pairs import PublishedTau
    from dspark.probe.self_test import ProbeReport


def published_lines(published: "PublishedTau", report: "ProbeReport") -> list[str]:
    """What the authors state beside what was measured, and why the two are not one figure."""
    figures = ", ".join(f"{name} {tau:.2f}" for name, tau in published.tau.items())
    drafts = len(report.acceptance_by_position)
    measured = f"tau of the first {drafts} drafts: {report.tau:.2f} (temperature 1, our prompts in "
    measured += "the model's chat format)"
    return [
        f"measured here: {measured}",
        f"published tau, blocks of {published.block_size}: {figures} (temperature "
        f"{published.temperature:g}; {published.prompts}; {published.source})",
        "the two compare on the same prompts only: dspark bench PAIR --suite gsm8k "
        "--temperatures 1 --schedule full",
    ]


def probe_lines(report: "ProbeReport") -> list[str]:
    rates = " ".join(f"{rate:.0%}" for rate in report.acceptance_by_position)
    lines = [
        f"acceptance of the first drafts: {rates} (sampled at temperature 1, at "
        f"{counted(report.places, 'place')} in {counted(report.prompts, 'answer')})"
    ]
    if report.calibration is not None:
        lines.append(f"calibration of its confidences: {report.calibration}")
    if report.fault is not None:
        return [*lines, f"misread: {report.fault}"]
    nearest = max(report.trials, key=lambda trial: trial.gain, default=None)
    if nearest is None:
        return lines
    return [
        *lines,
        f"OK: none of {len(report.trials)} alternative readings is better (best "
        f"{nearest.gain:+.1%}, above {nearest.threshold:.1%} would count)",
    ]
