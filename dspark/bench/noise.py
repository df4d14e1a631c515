"""How much equal work varied from trial to trial."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from dspark.bench.summary import Run

NOISY = 0.10  # spread of a quiet machine stays below


@dataclass(frozen=True, slots=True)
class Noise:
    """`spread`: the median over prompts of (fastest - slowest) / median of an arm's trials; None
    with one trial, which cannot tell."""

    spread: float | None

    @property
    def is_noisy(self) -> bool:
        return self.spread is not None and self.spread > NOISY


def rates_by_prompt(runs: Sequence[Run], arm: str) -> list[list[float]]:
    """Tokens per second of decoding [prompts][trials]; 0 for answers of one token."""
    prompts = 1 + max((run.prompt for run in runs), default=-1)
    rates: list[list[float]] = [[] for _ in range(prompts)]
    for run in sorted(runs, key=lambda run: run.trial):
        if run.arm == arm:
            rates[run.prompt].append(run.finished.stats.decode_tokens_per_second)
    return rates


def noise_of(rates: Sequence[Sequence[float]]) -> Noise:
    spreads = [
        (max(trials) - min(trials)) / median(trials)
        for trials in rates
        if len(trials) > 1 and min(trials) > 0
    ]
    return Noise(median(spreads) if spreads else None)
