"""The raw rounds of a bench, a line of JSON for each answer: the source of all its figures.

benchmarks/recompute_report.py computes the report again from this file, without dspark.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspark.atomic import replacing
from dspark.bench.summary import Run
from dspark.events import Round

if TYPE_CHECKING:
    from dspark.bench.sections import Section

VERSION = 1
SUFFIX = ".rounds.jsonl"


def rounds_path(output: Path) -> Path:
    """Beside the report: figures.json -> figures.rounds.jsonl."""
    return output.with_name(output.name.removesuffix(".json") + SUFFIX)


def write_rounds(path: Path, sections: Sequence["Section"]) -> None:
    """Writes the whole file or nothing."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for record in records(sections):
            file.write(json.dumps(record) + "\n")


def records(sections: Sequence["Section"]) -> Iterator[dict[str, Any]]:
    for index, section in enumerate(sections):
        for run in section.runs:
            yield _record(index, run, section.prompts[run.prompt].category)


def _record(section: int, run: Run, category: str) -> dict[str, Any]:
    stats = run.finished.stats
    return {
        "version": VERSION,
        "section": section,
        "arm": run.arm,
        "trial": run.trial,
        "prompt": run.prompt,
        "category": category,
        "prompt_tokens": stats.prompt_tokens,
        "prefill_seconds": stats.prefill_seconds,
        "decode_seconds": stats.decode_seconds,
        "token_ids": list(run.finished.token_ids),
        "rounds": [_round(each) for each in run.rounds],
    }


def _round(each: Round) -> dict[str, Any]:
    return {
        "drafted": len(each.draft),
        "verified": each.verified,
        "accepted": each.accepted,
        "parked": each.is_parked,
        "draft_seconds": each.draft_seconds,
        "verify_seconds": each.verify_seconds + each.accept_seconds,
        "seconds": each.seconds,
        "confidence": None if each.confidence is None else list(each.confidence),
    }
