"""Several heads and plain decoding on the same prompts: which head drafts best, and by how much."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from dspark.bench.config import PLAIN, BenchConfig
from dspark.bench.prompts import BenchPrompt
from dspark.bench.report import BenchReport
from dspark.bench.runner import Arm, BenchProgress, batched_runs, check_work, timed_runs
from dspark.bench.summary import Run, summarise

if TYPE_CHECKING:
    from dspark.bench.heads import OpenHead, OpenHeads


@dataclass(frozen=True, slots=True)
class HeadFigures:
    """One head's figures, with plain decoding's."""

    head: "OpenHead"
    report: BenchReport

    @property
    def category_taus(self) -> tuple[float, ...]:
        return tuple(each.tau for each in self.report.categories)

    @property
    def mean_tau(self) -> float:
        """Mean over categories, weighted equally whatever their number of prompts."""
        return fmean(self.category_taus)


@dataclass(frozen=True, slots=True)
class Gain:
    """Relative gain of one head's accepted length over another's: by category, and of the means."""

    name: str
    over: str
    by_category: tuple[float, ...]
    mean: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """`is_timed` is False if many answers were written at a time, which makes rates meaningless."""

    heads: tuple[HeadFigures, ...]
    is_timed: bool

    @property
    def is_partial(self) -> bool:
        return any(each.report.is_partial for each in self.heads)

    @property
    def gains(self) -> tuple[Gain, ...]:
        """Of the first DSpark head over every head of another algorithm."""
        ours = next((each for each in self.heads if each.head.algorithm == "dspark"), None)
        if ours is None:
            return ()
        return tuple(_gain(ours, other) for other in self.heads if other.head.algorithm != "dspark")


def compare(
    opened: "OpenHeads",
    prompts: Sequence[BenchPrompt],
    config: BenchConfig,
    *,
    is_timed: bool,
) -> Generator[BenchProgress, None, Comparison]:
    """Plain decoding and every head on the same prompts; timed one answer at a time."""
    check_work(prompts, config)
    runs = yield from (timed_runs if is_timed else batched_runs)(arms_of(opened), prompts, config)
    return comparison_of(opened, runs, prompts, config, is_timed=is_timed)


def arms_of(opened: "OpenHeads") -> list[Arm]:
    heads = (Arm(head.name, head.session) for head in opened.heads)
    return [Arm(PLAIN, opened.plain, is_plain=True), *heads]


def comparison_of(
    opened: "OpenHeads",
    runs: Sequence[Run],
    prompts: Sequence[BenchPrompt],
    config: BenchConfig,
    *,
    is_timed: bool,
) -> Comparison:
    figures = (
        HeadFigures(head, summarise(runs, prompts, config, opened.plain.next_logits, head.name))
        for head in opened.heads
    )
    return Comparison(tuple(figures), is_timed)


def _gain(ours: HeadFigures, other: HeadFigures) -> Gain:
    pairs = zip(ours.category_taus, other.category_taus, strict=True)
    return Gain(
        name=ours.head.name,
        over=other.head.name,
        by_category=tuple(a / b - 1 if b else 0.0 for a, b in pairs),
        mean=ours.mean_tau / other.mean_tau - 1 if other.mean_tau else 0.0,
    )
