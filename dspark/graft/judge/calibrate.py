"""Calibration of a head's confidences by sequential temperature scaling (STS; DeepSeek 2026).

The survival a_k = c_1 ... c_k is compared with "at least k drafts were accepted": once for requests
that sample (rejection's rule at temperature 1) and once for greedy ones (the likeliest token).
First each position's logits are shifted: a head is more confident on the answers it was trained on
than on others, which no temperature corrects. Then the temperatures are fitted left to right, each
by a line search with the previous ones fixed.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dspark.bench.reliability import (
    Reliability,
    expected_calibration_error,
    expected_noise,
    reliability_of,
)
from dspark.checkpoints.deepspec import read_draft_config, update_head_config
from dspark.checkpoints.head_config import Calibration
from dspark.config import SamplingConfig, StopConfig
from dspark.drafters.calibration import confidence_logits, scaled_confidence
from dspark.engine.request import Request
from dspark.events import Event, Round
from dspark.graft.judge.open_target import OpenTarget

COLDEST, HOTTEST = 0.2, 5.0
POINTS = 161  # a step of 2 %
HOLD = 1e-5  # keeps a position that was rarely reached from diverging
TEMPERATURE = 1.0  # of the text, as in the confidence head's training


@dataclass(frozen=True, slots=True)
class JudgedRounds:
    """Rounds with whole blocks verified: logits [N, K] of the confidence head, accepted [N]."""

    logits: torch.Tensor
    accepted: torch.Tensor

    @property
    def survived(self) -> torch.Tensor:
        """[N, K]: whether this draft and all before it were accepted."""
        return self.accepted[:, None] > torch.arange(self.logits.shape[1])

    def shifted(self, shifts: Sequence[float]) -> "JudgedRounds":
        return JudgedRounds(self.logits + torch.tensor(shifts, dtype=torch.float64), self.accepted)

    def survival(self, temperatures: Sequence[float]) -> torch.Tensor:
        """a_k [N, K]."""
        divisors = torch.tensor(temperatures, dtype=torch.float64)
        return scaled_confidence(self.logits, divisors).cumprod(dim=1)


@dataclass(frozen=True, slots=True)
class Fit:
    """Of one kind of requests, judged by position on prompts that were not used for the fit."""

    calibration: Calibration
    fitted_rounds: int
    rounds: int
    before: tuple[Reliability, ...]
    after: tuple[Reliability, ...]

    def figures(self) -> dict[str, Any]:
        return {
            "rounds": self.rounds,
            "fitted_rounds": self.fitted_rounds,
            "ece_before": [round(each.ece, 4) for each in self.before],
            "ece_after": [round(each.ece, 4) for each in self.after],
            "ece_of_a_perfect_head": [round(each.noise, 4) for each in self.after],
            "auc_before": [each.auc and round(each.auc, 4) for each in self.before],
            "auc_after": [each.auc and round(each.auc, 4) for each in self.after],
        }


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Of both kinds of requests."""

    sampled: Fit
    greedy: Fit

    def figures(self) -> dict[str, Any]:
        """The record in a head's config.json."""
        return {"sampled": self.sampled.figures(), "greedy": self.greedy.figures()}


def calibrate_head(
    target: OpenTarget, head: Path, prompts: Sequence[tuple[int, ...]], max_tokens: int
) -> Calibrated | None:
    """Fit on every other prompt, evaluate on the rest, and write the result into the head's files.

    Returns None and writes nothing without a confidence head, or with too few prompts.
    """
    config = read_draft_config(head)
    if not config.has_confidence:
        return None
    sampled = _judged_halves(target, head, prompts, max_tokens, TEMPERATURE)
    greedy = _judged_halves(target, head, prompts, max_tokens, 0.0)
    if not all(len(rounds.accepted) for rounds in (*sampled, *greedy)):
        return None
    result = Calibrated(
        _fit(*sampled, config.sampled_calibration), _fit(*greedy, config.greedy_calibration)
    )
    changes = {
        "confidence_temperatures": list(result.sampled.calibration.temperatures),
        "confidence_shifts": list(result.sampled.calibration.shifts),
        "greedy_confidence": result.greedy.calibration.to_json(),
        "graft": {"calibration": result.figures()},
    }
    update_head_config(head, changes)
    return result


def _judged_halves(
    target: OpenTarget,
    head: Path,
    prompts: Sequence[tuple[int, ...]],
    max_tokens: int,
    temperature: float,
) -> tuple[JudgedRounds, JudgedRounds]:
    """Answers to every other prompt, and to the rest."""
    config, stop = read_draft_config(head), StopConfig(max_tokens=max_tokens)
    known = config.sampled_calibration if temperature else config.greedy_calibration
    with target.with_head(head) as session:

        def judged(some: Sequence[tuple[int, ...]]) -> JudgedRounds:
            requests = [Request(prompt, SamplingConfig(temperature), stop) for prompt in some]
            return judge(session.engine.run(requests), known)

        return judged(prompts[::2]), judged(prompts[1::2])


def _fit(fitted: JudgedRounds, fresh: JudgedRounds, old: Calibration) -> Fit:
    new = fit_calibration(fitted)
    return Fit(
        calibration=new,
        fitted_rounds=len(fitted.accepted),
        rounds=len(fresh.accepted),
        before=reliability(fresh.shifted(old.shifts), old.temperatures),
        after=reliability(fresh.shifted(new.shifts), new.temperatures),
    )


def judge(events: Iterable[Event], known: Calibration) -> JudgedRounds:
    """The rounds with whole blocks verified; `known` is the calibration already applied."""
    size = len(known.temperatures)
    rounds = [
        event
        for event in events
        if isinstance(event, Round) and event.confidence is not None and event.verified == size
    ]
    confidences = torch.tensor([r.confidence for r in rounds], dtype=torch.float64)
    return JudgedRounds(
        confidence_logits(confidences.reshape(-1, size), known),
        torch.tensor([r.accepted for r in rounds], dtype=torch.long),
    )


def fit_calibration(rounds: JudgedRounds) -> Calibration:
    """Rounded to four digits, as a head's files have it."""
    shifts = [round(shift, 4) for shift in fit_shifts(rounds)]
    temperatures = fit_temperatures(rounds.shifted(shifts))
    return Calibration(tuple(round(t, 4) for t in temperatures), tuple(shifts))


def fit_shifts(rounds: JudgedRounds) -> tuple[float, ...]:
    """Maximum-likelihood offset of each position's logits, with a free temperature.

    0 where all reached drafts were accepted, or none.
    """
    positions = torch.arange(rounds.logits.shape[1])
    is_told_apart = (rounds.accepted[:, None] == positions).any(0) & rounds.survived.any(0)
    if not is_told_apart.any():
        return (0.0,) * len(positions)
    is_judged = (rounds.accepted[:, None] >= positions) & is_told_apart
    is_kept = rounds.survived[is_judged].double()
    shifts = torch.zeros(len(positions), dtype=torch.float64, requires_grad=True)
    log_temperatures = torch.zeros_like(shifts, requires_grad=True)
    numbers = [shifts, log_temperatures]
    optimizer = torch.optim.LBFGS(numbers, max_iter=100, line_search_fn="strong_wolfe")

    def surprise() -> float:
        optimizer.zero_grad()
        scaled = (rounds.logits + shifts) * (-log_temperatures).exp()
        loss = F.binary_cross_entropy_with_logits(scaled[is_judged], is_kept)
        loss = loss + HOLD * sum(number.square().sum() for number in numbers)
        loss.backward()
        return float(loss.detach())

    optimizer.step(surprise)
    return tuple(shifts.detach().tolist())


def fit_temperatures(rounds: JudgedRounds) -> tuple[float, ...]:
    """T_1 ... T_K; 1 for every position without a round to fit."""
    if not len(rounds.accepted):
        return (1.0,) * rounds.logits.shape[1]
    before = torch.ones(len(rounds.accepted), dtype=torch.float64)
    temperatures = []
    for logits, survived in zip(rounds.logits.unbind(1), rounds.survived.unbind(1), strict=True):
        best = _best_temperature(logits, before, survived)
        before = before * scaled_confidence(logits, best)
        temperatures.append(best)
    return tuple(temperatures)


def _best_temperature(logits: torch.Tensor, before: torch.Tensor, survived: torch.Tensor) -> float:
    """The temperature of least ECE on a grid.

    ECE is noisy: among temperatures whose ECE is within noise of the least, the one of maximum
    likelihood wins.
    """
    tried = [_try(t, before * scaled_confidence(logits, t), survived) for t in _line()]
    least = min(tried, key=lambda trial: trial.ece)
    good = [trial for trial in tried if trial.ece <= least.ece + least.noise]
    return min(good, key=lambda trial: trial.surprise).temperature


def _line() -> list[float]:
    low, high = math.log(COLDEST), math.log(HOTTEST)
    return torch.linspace(low, high, POINTS, dtype=torch.float64).exp().tolist()


@dataclass(frozen=True, slots=True)
class _Trial:
    temperature: float
    ece: float
    noise: float
    surprise: float


def _try(temperature: float, survival: torch.Tensor, survived: torch.Tensor) -> _Trial:
    surprise = F.binary_cross_entropy(survival, survived.to(survival.dtype))
    return _Trial(
        temperature,
        float(expected_calibration_error(survival, survived)),
        float(expected_noise(survival)),
        float(surprise),
    )


def reliability(rounds: JudgedRounds, temperatures: Sequence[float]) -> tuple[Reliability, ...]:
    """Figures of each position under these temperatures."""
    survival = rounds.survival(temperatures).T.contiguous()
    return tuple(reliability_of(a, hit) for a, hit in zip(survival, rounds.survived.T, strict=True))
