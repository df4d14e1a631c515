"""Intervals by bootstrap: how far a figure would move with other prompts and trials."""

import math
import random
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TypeVar

RESAMPLES = 1000
SEED = 0  # the same interval for the same runs

Rates = Sequence[Sequence[float]]  # [prompts][trials], all above 0
Prompt = TypeVar("Prompt")


def speedup_interval(plain: Rates, other: Rates, share: float = 0.95) -> tuple[float, float]:
    """Of the geometric mean ratio of answers that were timed side by side: prompts are drawn again,
    and in each of them trials, the same for both arms."""
    ratios = [
        [math.log(b / a) for a, b in zip(one, two, strict=True)]
        for one, two in zip(plain, other, strict=True)
    ]
    return _interval(ratios, lambda dice, trials: fmean(dice.choices(trials, k=len(trials))), share)


def change_interval(old: Rates, new: Rates, share: float = 0.99) -> tuple[float, float]:
    """Of the geometric mean of new over old on the same prompts, timed at different times: prompts
    are drawn again, and the trials of each run apart."""
    pairs = [
        ([math.log(rate) for rate in one], [math.log(rate) for rate in two])
        for one, two in zip(old, new, strict=True)
    ]

    def drawn(dice: random.Random, pair: tuple[list[float], list[float]]) -> float:
        before, after = pair
        again = dice.choices(after, k=len(after))
        return fmean(again) - fmean(dice.choices(before, k=len(before)))

    return _interval(pairs, drawn, share)


def geometric_change(old: Rates, new: Rates) -> float:
    """The estimate to which `change_interval` belongs."""
    return math.exp(
        fmean(
            fmean(map(math.log, two)) - fmean(map(math.log, one))
            for one, two in zip(old, new, strict=True)
        )
    )


def _interval(
    prompts: Sequence[Prompt], drawn: Callable[[random.Random, Prompt], float], share: float
) -> tuple[float, float]:
    dice = random.Random(SEED)
    means = sorted(
        fmean(drawn(dice, each) for each in dice.choices(prompts, k=len(prompts)))
        for _ in range(RESAMPLES)
    )
    cut = round((1 - share) / 2 * (RESAMPLES - 1))
    return math.exp(means[cut]), math.exp(means[-1 - cut])
