"""A simulation of the scheduler under load: published acceptance, a measured or stated SPS curve.

Nothing decodes. Each request's confidences are drawn around the acceptance of its task; drafts are
accepted with exactly that probability, so the head is calibrated. The answer is how the verified
tokens per request follow the load, and what fixed lengths would give.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dspark.bench.config import PLAIN
from dspark.engine.schedule.parking import Parking
from dspark.engine.schedule.policies import (
    AsyncSpsSchedule,
    FullSchedule,
    Scheduler,
    SpsSchedule,
)
from dspark.engine.schedule.sps_profile import SpsTable

# accepted lengths of the paper's DSpark on Qwen3-4B (T = 1, blocks of seven), by task
PAPER_TAU = {
    "GSM8K": 6.11,
    "MATH": 5.70,
    "AIME25": 4.89,
    "MBPP": 5.13,
    "HumanEval": 5.38,
    "LCB": 4.86,
    "MT-Bench": 3.64,
    "Alpaca": 3.54,
    "Arena": 3.29,
}
BLOCK = 7
CONCENTRATION = 4.0  # of the Beta law of confidences around their mean: they vary by token


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """One arm at one load: tokens per request and second; drafts verified per request in rounds
    with drafts; `plain_rounds` is the share of the others."""

    arm: str
    requests: int
    verified: float
    plain_rounds: float
    per_request: float
    total: float


def acceptance_of(tau: float, block: int = BLOCK) -> float:
    """The acceptance of a draft, given those before it, at which 1 + a + a² + ... is tau."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        length = sum(middle**k for k in range(block + 1))
        low, high = (middle, high) if length < tau else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True, slots=True)
class _Round:
    """Confidences of every request's block, and how many drafts would be accepted: the same for
    every arm."""

    confidences: torch.Tensor
    accepted: tuple[int, ...]


def simulate(
    table: SpsTable, counts: Sequence[int], rounds: int = 200, seed: int = 0, block: int = BLOCK
) -> list[LoadPoint]:
    """Plain decoding, every fixed length and both schedulers with parking, at every number of
    requests; the tasks of the paper in equal parts."""
    points = []
    for count in counts:
        drawn = _rounds(count, rounds, seed, block)
        fixed = [(f"fixed {n}", FullSchedule(n)) for n in range(1, block + 1)]
        arms: list[tuple[str, Scheduler | None]] = [(PLAIN, None), *fixed]
        arms += [("scheduler", SpsSchedule(table)), ("async scheduler", AsyncSpsSchedule(table))]
        points += [_point(name, arm, table, count, drawn, block) for name, arm in arms]
    return points


def _rounds(count: int, rounds: int, seed: int, block: int) -> list[_Round]:
    dice = random.Random(seed)
    means = [acceptance_of(tau, block) for tau in PAPER_TAU.values()]
    drawn = []
    for _ in range(rounds):
        rows = [
            [_confidence(dice, means[r % len(means)]) for _ in range(block)] for r in range(count)
        ]
        drawn.append(_Round(torch.tensor(rows), tuple(_accepted(dice, row) for row in rows)))
    return drawn


def _point(
    name: str,
    schedule: Scheduler | None,
    table: SpsTable,
    count: int,
    drawn: Sequence[_Round],
    block: int,
) -> LoadPoint:
    tokens, seconds, verified, drafted = 0, 0.0, 0, 0
    parking = Parking() if isinstance(schedule, SpsSchedule) else None
    for each in drawn:
        has_drafts = schedule is not None and (parking is None or parking.wants_drafts(count))
        lengths = [0] * count
        if schedule is not None and has_drafts:
            lengths = schedule.admit(each.confidences, [block] * count)
        took = table.verify(count + sum(lengths), count)
        took += table.draft(count) if has_drafts else 0.0
        blocks = [(n, min(n, a)) for n, a in zip(lengths, each.accepted, strict=True)]
        gained = sum(1 + accepted for _, accepted in blocks)
        if parking is not None:
            parking.record(took, blocks, has_drafts=has_drafts)
        tokens, seconds = tokens + gained, seconds + took
        verified, drafted = verified + sum(lengths), drafted + has_drafts
    rate = tokens / seconds
    budget = verified / drafted / count if drafted else 0.0
    return LoadPoint(name, count, budget, 1 - drafted / len(drawn), rate / count, rate)


def _confidence(dice: random.Random, mean: float) -> float:
    return dice.betavariate(CONCENTRATION * mean, CONCENTRATION * (1 - mean))


def _accepted(dice: random.Random, confidences: Sequence[float]) -> int:
    accepted = 0
    while accepted < len(confidences) and dice.random() < confidences[accepted]:
        accepted += 1
    return accepted
