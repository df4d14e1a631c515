"""Whether a trained head is worth using: measured on held-out prompts, on this machine.

The figures are in OUT/measured.json, separate from config.json, since they depend on the machine
as much as on the head.
"""

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from dspark.bench.config import BenchConfig
from dspark.bench.document import report_document, write_document
from dspark.bench.prompts import BenchPrompt
from dspark.bench.report import BenchReport
from dspark.bench.runner import run_bench
from dspark.config import EngineConfig
from dspark.errors import StorageError
from dspark.graft.data.answer_file import Answer
from dspark.graft.data.corpus import CorpusProgress
from dspark.graft.judge.acceptance import Evaluation
from dspark.graft.judge.open_target import OpenTarget
from dspark.graft.train.metrics import of_kind, read_metrics
from dspark.plural import counted
from dspark.progress import translated

MEASURED = "measured.json"

MEASUREMENT = BenchConfig(trials=3, max_tokens=64)
MEASURED_PROMPTS = 8
WORTH_USING = 1.1  # × plain decoding; less is not noticeable, and the head costs memory
LEARNED_BY_HEART = 1.25  # times the drafts accepted on held-out answers
RECENT_STEPS = 20
UNKNOWN_ORIGIN = "other"


@dataclass(frozen=True, slots=True)
class Verdict:
    is_worth_using: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Speedup:
    """`own` and `released` are this head and the base's released one on the same prompts."""

    report: BenchReport
    own: Evaluation
    released: Evaluation | None
    verdict: Verdict


def measure_head(
    target: OpenTarget,
    head: Path,
    prompts: Sequence[BenchPrompt],
    own: Evaluation,
    released: Evaluation | None,
    bench: BenchConfig,
    command: str,
) -> Generator[CorpusProgress, None, Speedup]:
    """Plain decoding and the head in turns, with the schedule that a user gets; the figures are
    kept in the head's folder, too."""
    engine = EngineConfig()
    with target.with_head(head, engine) as session:
        report = yield from translated(
            run_bench(session, prompts, bench),
            lambda item: CorpusProgress("measuring the speed-up", item.done, item.total),
        )
        verdict = judge_speed(report, _advice(head / "training" / "metrics.jsonl"))
        measured = Speedup(report, own, released, verdict)
        document = report_document(report, bench, engine, session.name, session.runtime, command)
        _write(head / MEASURED, document | _conclusion(measured))
        return measured


def choose_prompts(
    held_out: Sequence[Answer], origins: Mapping[str, str], limit: int = MEASURED_PROMPTS
) -> list[BenchPrompt]:
    """Prompts of all origins in equal numbers, as far as available."""
    by_origin: dict[str, list[BenchPrompt]] = {}
    for answer in held_out:
        origin = origins.get(answer.prompt, UNKNOWN_ORIGIN)
        by_origin.setdefault(origin, []).append(BenchPrompt(origin, answer.prompt_ids))
    in_turns = chain.from_iterable(zip_longest(*by_origin.values()))
    return [prompt for prompt in in_turns if prompt is not None][:limit]


def judge_speed(report: BenchReport, advice: str) -> Verdict:
    """`advice` is the suggestion for a head that is not worth using."""
    if report.is_identical is False:
        return Verdict(
            False,
            "Do not use it before finding out why: the output differs from plain decoding on "
            f"{report.differing_prompts} of {counted(report.prompts, 'prompt')}.",
        )
    speedup = report.speedup
    figures = (
        f"{speedup.median:.2f} × plain decoding on this machine ({speedup.low:.2f} to "
        f"{speedup.high:.2f} in {counted(len(speedup.trials), 'trial')} of "
        f"{counted(report.prompts, 'held-out prompt')}; "
        f"worth using from {WORTH_USING:.2f} ×)"
    )
    kinds = _kinds(report)
    if speedup.low >= WORTH_USING:
        return Verdict(True, f"Worth using: {figures}{kinds}.")
    if speedup.median >= WORTH_USING:
        return Verdict(True, f"Worth using, by a small margin: {figures}{kinds}.")
    return Verdict(False, f"Not worth using yet: {figures}{kinds}; {advice}.")


def _kinds(report: BenchReport) -> str:
    ordered = sorted(report.categories, key=lambda each: each.speedup)
    if len(ordered) < 2:
        return ""
    least, most = ordered[0], ordered[-1]
    return (
        f", most on {most.category} ({most.speedup:.2f} ×), "
        f"least on {least.category} ({least.speedup:.2f} ×)"
    )


def _advice(metrics: Path) -> str:
    lines = read_metrics(metrics)
    steps, validations = of_kind(lines, "step")[-RECENT_STEPS:], of_kind(lines, "held_out")
    if not steps or not validations:
        return "give it more answers and more --steps"
    trained, held_out = sum(line["tau"] for line in steps) / len(steps), validations[-1]["tau"]
    if trained - 1.0 > LEARNED_BY_HEART * (held_out - 1.0):
        return (
            f"it expects τ {trained:.2f} on training answers and {held_out:.2f} on "
            "others, so give it more answers"
        )
    return f"it expects τ {held_out:.2f} on new answers, as in training: more --steps or --layers"


def _conclusion(measured: Speedup) -> dict[str, Any]:
    released = measured.released
    return {
        "held_out": _figures(measured.own),
        "released": None if released is None else _figures(released),
        "is_worth_using": measured.verdict.is_worth_using,
        "verdict": measured.verdict.sentence,
    }


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "prompts": evaluation.prompts,
        "rounds": evaluation.rounds,
        "tau": evaluation.tau,
        "acceptance_by_position": list(evaluation.acceptance_by_position),
    }


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        write_document(path, document)
    except OSError as error:
        raise StorageError(
            f"could not write {path} ({error})", "Free some space and run the same command again."
        ) from error


def read_measured(head: Path) -> dict[str, Any] | None:
    """None if nothing was measured, or the file is incomplete."""
    try:
        document = json.loads((head / MEASURED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None
