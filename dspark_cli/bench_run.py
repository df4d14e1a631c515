"""What benchmarks share: prompts, encoded prompts, and a progress bar on stderr."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dspark.errors import InputError
from dspark.progress import follow
from dspark_cli.loading import progress_bars

if TYPE_CHECKING:
    from dspark.bench.prompts import BenchPrompt, PromptText
    from dspark.bench.runner import BenchProgress
    from dspark.bench.suites import PromptSet
    from dspark.engine.session import Session

Report = TypeVar("Report")


def chosen_prompts(files: Sequence[Path], suite: str | None, limit: int | None) -> "PromptSet":
    """Our own prompts, those of files, or a suite, which is fetched if needed."""
    from dspark.bench.suites import file_set, find_suite, own_set

    if files and suite is not None:
        raise InputError("--prompts and --suite exclude each other", "Give one of them.")
    if files:
        return file_set(files, limit)
    if suite is None:
        return own_set().first(limit)
    with progress_bars(is_bytes=True) as bars:
        return follow(find_suite(suite), bars.show).first(limit)


def encode_all(session: "Session", texts: "Sequence[PromptText]") -> "list[BenchPrompt]":
    from dspark.bench.encode import encode_prompts

    return encode_prompts(session, texts)


def parse_counts(
    text: str | None, *, is_alone: bool, option: str = "--concurrency"
) -> tuple[int, ...]:
    """Numbers of requests, ascending; empty without the option."""
    if text is None:
        return ()
    if not is_alone:
        raise InputError(
            "--concurrency runs every schedule of one head",
            "Leave --drafters, --schedule and --confidence-threshold out.",
        )
    counts = whole_numbers(text, option)
    if min(counts) < 1:
        raise InputError(f"{option} {text} is no list of numbers", "Write it like 1,2,4,8.")
    return counts


def whole_numbers(text: str | None, option: str) -> tuple[int, ...]:
    """Ascending, each once; empty without the option."""
    if text is None:
        return ()
    numbers = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if len(numbers) != text.count(",") + 1:
        raise InputError(f"{option} {text} is no list of numbers", "Write it like 1,2,4,8.")
    return tuple(sorted(set(numbers)))


def temperatures_of(text: str | None) -> tuple[float, ...]:
    """In the order given; empty without the option."""
    if text is None:
        return ()
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= each < float("inf") for each in found):
        raise InputError(f"--temperatures {text} is no list of temperatures", "Write it like 0,1.")
    return tuple(dict.fromkeys(found))


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
