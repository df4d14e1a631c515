"""Reports as the JSON document of `dspark bench`, printed by --json or written by --output."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspark.atomic import replacing
from dspark.bench.config import SCHEDULERS, BenchConfig
from dspark.bench.report import BenchReport, Figure
from dspark.config import EngineConfig
from dspark.machine import describe_machine, describe_versions

if TYPE_CHECKING:
    from dspark.bench.comparison import Comparison, HeadFigures
    from dspark.bench.concurrency import LoadFigures, LoadReport
    from dspark.bench.heads import OpenHeads
    from dspark.engine.runtime import ResolvedRuntime

VERSION = 2  # of the document; a change of meaning raises it


def report_document(
    report: BenchReport,
    bench: BenchConfig,
    engine: EngineConfig,
    pair: str,
    runtime: "ResolvedRuntime",
    command: str,
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "pair": pair,
        "plain": figure_object(report.plain.decode),
        "dspark": figure_object(report.dspark.decode),
        "speedup": report.speedup.median,
        "speedup_trials": list(report.speedup.trials),
        "end_to_end": {
            "plain": figure_object(report.plain.end_to_end),
            "dspark": figure_object(report.dspark.end_to_end),
            "speedup": report.end_to_end_speedup.median,
        },
        "categories": [asdict(each) for each in report.categories],
        **_acceptance_and_verdict(report),
        "partial": report.is_partial,
        "settings": {
            "device": runtime.device,
            "dtype": runtime.dtype,
            "prompts": report.prompts,
            **asdict(bench),
            "trials": report.trials,
            "schedule": asdict(engine.schedule),
        },
        **provenance(command),
    }


def load_document(
    report: "LoadReport",
    bench: BenchConfig,
    pair: str,
    runtime: "ResolvedRuntime",
    command: str,
) -> dict[str, Any]:
    """Of `dspark bench --concurrency`: seconds, tokens per second. What is over the best static arm
    is so by the times of plain decoding that both are, each beside its own plain runs."""
    return {
        "pair": pair,
        "concurrency": [
            {
                "requests": count,
                **_over_best_static(report, count),
                "arms": [_load_object(report.of(arm, count)) for arm in report.arms],
            }
            for count in report.counts
        ],
        "settings": {
            "device": runtime.device,
            "dtype": runtime.dtype,
            "schedulers_before": "one run of max_tokens at every number of requests",
            **asdict(bench),
            "trials": report.trials,
        },
        "partial": report.trials < bench.trials,
        **provenance(command),
    }


def _over_best_static(report: "LoadReport", count: int) -> dict[str, float]:
    best, measured = report.best_static(count), [arm for arm in SCHEDULERS if arm in report.arms]
    return {
        f"{arm.replace(' ', '_')}_over_best_static": report.of(arm, count).over_plain.median / best
        for arm in measured
    }


def _load_object(figures: "LoadFigures") -> dict[str, Any]:
    plain = asdict(figures)
    for name in ("total", "over_plain"):
        plain[name] = figure_object(getattr(figures, name))
    del plain["requests"]
    return plain


def comparison_document(
    comparison: "Comparison",
    bench: BenchConfig,
    engine: EngineConfig,
    opened: "OpenHeads",
    command: str,
) -> dict[str, Any]:
    """Rates are left out if they were not measured."""
    reports = [each.report for each in comparison.heads]
    timed = {"plain": figure_object(reports[0].plain.decode)} if comparison.is_timed else {}
    runtime = opened.plain.runtime
    return {
        "version": VERSION,
        "target": opened.plain.name,
        **timed,
        "drafters": [head_object(each, comparison.is_timed) for each in comparison.heads],
        "gains": [asdict(each) for each in comparison.gains],
        "partial": comparison.is_partial,
        "settings": {
            "device": runtime.device,
            "dtype": runtime.dtype,
            "prompts": reports[0].prompts,
            "timed": comparison.is_timed,
            **asdict(bench),
            "trials": reports[0].trials,
            "schedule": asdict(engine.schedule),
        },
        **provenance(command),
    }


def head_object(figures: "HeadFigures", is_timed: bool) -> dict[str, Any]:
    head, report = figures.head, figures.report
    categories = [asdict(each) for each in report.categories]
    timed: dict[str, Any] = {}
    if is_timed:
        timed = {
            "decode": figure_object(report.dspark.decode),
            "end_to_end": figure_object(report.dspark.end_to_end),
            "speedup": report.speedup.median,
            "speedup_trials": list(report.speedup.trials),
        }
    else:
        for each in categories:
            del each["speedup"]
    return {
        "name": head.name,
        "algorithm": head.algorithm,
        "parameters": head.parameters,
        "head": head.folder and str(head.folder),
        "training": head.training,
        **timed,
        "mean_tau": figures.mean_tau,
        "categories": categories,
        **_acceptance_and_verdict(report),
    }


def _acceptance_and_verdict(report: BenchReport) -> dict[str, Any]:
    return {
        "tau": report.tau,
        "verified_per_round": report.verified_per_round,
        "parked": report.parked,
        "acceptance_by_position": [
            {**asdict(each), "rate": each.rate, "conditional_rate": each.conditional_rate}
            for each in report.acceptance_by_position
        ],
        "identical": report.is_identical,
        "differing_prompts": report.differing_prompts,
        "difference": None if report.difference is None else asdict(report.difference),
    }


def figure_object(figure: Figure) -> dict[str, Any]:
    """Tokens per second."""
    return {
        "median": figure.median,
        "low": figure.low,
        "high": figure.high,
        "trials": list(figure.trials),
    }


def provenance(command: str) -> dict[str, Any]:
    """Machine, versions, date and command, stored with every figure."""
    return {
        "machine": describe_machine(),
        "versions": describe_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Writes the whole file or nothing."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
