"""Shared by all benchmarks: encoded prompts, and a progress bar on stderr."""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, TypeVar

from dspark.bench.prompts import BenchPrompt, PromptText
from dspark.errors import InputError
from dspark.progress import follow
from dspark_cli.loading import progress_bars
from dspark_cli.prompt import encode_prompt

if TYPE_CHECKING:
    from dspark.bench.runner import BenchProgress
    from dspark.engine.session import Session

Report = TypeVar("Report")


def encode_all(session: "Session", texts: Sequence[PromptText]) -> list[BenchPrompt]:
    return [
        BenchPrompt(each.category, tuple(encode_prompt(session, each.text, is_raw=False)))
        for each in texts
    ]


def parse_counts(text: str | None, *, is_alone: bool, option: str = "--concurrency") -> list[int]:
    """Numbers of requests, ascending; empty without the option."""
    if text is None:
        return []
    if not is_alone:
        raise InputError(
            "--concurrency runs every schedule of one head",
            "Leave --drafters, --schedule and --confidence-threshold out.",
        )
    counts = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if len(counts) != text.count(",") + 1 or min(counts) < 1:
        raise InputError(f"{option} {text} is no list of numbers", "Write it like 1,2,4,8.")
    return sorted(set(counts))


def follow_bench(
    work: "Generator[BenchProgress, None, Report]", *, is_timed: bool = True
) -> Report:
    """Shows progress; after Ctrl+C, the report covers what was complete."""
    with progress_bars(has_time_left=True) as bars:
        return follow(
            work, lambda item: bars.update("bench", item.done, item.total, _label(item, is_timed))
        )


def _label(progress: "BenchProgress", is_timed: bool) -> str:
    if progress.latest is None or not is_timed:
        return progress.arm
    rate = progress.latest.decode_tokens_per_second
    return f"trial {progress.trial + 1} {progress.arm} {rate:5.1f} tok/s"
