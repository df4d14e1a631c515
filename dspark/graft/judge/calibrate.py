"""Calibration of a head's confidences by sequential temperature scaling (STS; DeepSeek 2026).

The survival a_k = c_1 ... c_k is compared with "at least k drafts were accepted". First one number
is added to every logit, by the confidence head's bias: a head is more confident on the answers it
was trained on than on others, which no temperature corrects. Then the temperatures are fitted left
to right, each by a line search with the previous ones fixed.
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
from dspark.checkpoints.deepspec import (
    read_draft_config,
    shift_confidence,
    update_head_config,
)
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

    def shifted(self, shift: float) -> "JudgedRounds":
        return JudgedRounds(self.logits + shift, self.accepted)

    def survival(self, temperatures: Sequence[float]) -> torch.Tensor:
        """a_k [N, K]."""
        columns = zip(self.logits.unbind(dim=1), temperatures, strict=True)
        return torch.stack([scaled_confidence(z, t) for z, t in columns], dim=1).cumprod(dim=1)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Figures by position, all on prompts not used for the fit; greedy ones with the same fit."""

    shift: float
    temperatures: tuple[float, ...]
    fitted_rounds: int
    rounds: int
    before: tuple[Reliability, ...]
    after: tuple[Reliability, ...]
    greedy_rounds: int
    greedy: tuple[Reliability, ...]

    def figures(self) -> dict[str, Any]:
        """The record in a head's config.json."""
        return {
            "rounds": self.rounds,
            "fitted_rounds": self.fitted_rounds,
            "shift": round(self.shift, 4),
            "ece_before": [round(each.ece, 4) for each in self.before],
            "ece_after": [round(each.ece, 4) for each in self.after],
            "ece_of_a_perfect_head": [round(each.noise, 4) for each in self.after],
            "ece_greedy": [round(each.ece, 4) for each in self.greedy],
            "auc_before": [each.auc and round(each.auc, 4) for each in self.before],
            "auc_after": [each.auc and round(each.auc, 4) for each in self.after],
        }


def calibrate_head(
    target: OpenTarget, head: Path, prompts: Sequence[tuple[int, ...]], max_tokens: int
) -> Calibrated | None:
    """Fit on every other prompt, evaluate on the rest, and write the result into the head's files.

    Returns None and writes nothing without a confidence head, or with too few prompts.
    """
    config = read_draft_config(head)
    if not config.has_confidence:
        return None
    stop = StopConfig(max_tokens=max_tokens)
    with target.with_head(head) as session:

        def judged(some: Sequence[tuple[int, ...]], temperature: float) -> JudgedRounds:
            requests = [Request(prompt, SamplingConfig(temperature), stop) for prompt in some]
            return judge(session.engine.run(requests), config.temperatures)

        fitted, fresh = judged(prompts[::2], TEMPERATURE), judged(prompts[1::2], TEMPERATURE)
        greedy = judged(prompts[1::2], 0.0)
    if not min(len(rounds.accepted) for rounds in (fitted, fresh, greedy)):
        return None
    result = _calibrated(head, config.temperatures, fitted, fresh, greedy)
    update_head_config(
        head,
        {
            "confidence_temperatures": list(result.temperatures),
            "graft": {"calibration": result.figures()},
        },
    )
    return result


def _calibrated(
    head: Path,
    before: tuple[float, ...],
    fitted: JudgedRounds,
    fresh: JudgedRounds,
    greedy: JudgedRounds,
) -> Calibrated:
    """Shifts the head's confidences and fits temperatures to `fitted`; the others judge both."""
    shift = shift_confidence(head, fit_shift(fitted))
    temperatures = tuple(round(t, 4) for t in fit_temperatures(fitted.shifted(shift)))
    return Calibrated(
        shift=shift,
        temperatures=temperatures,
        fitted_rounds=len(fitted.accepted),
        rounds=len(fresh.accepted),
        before=reliability(fresh, before),
        after=reliability(fresh.shifted(shift), temperatures),
        greedy_rounds=len(greedy.accepted),
        greedy=reliability(greedy.shifted(shift), temperatures),
    )


def judge(events: Iterable[Event], temperatures: tuple[float, ...]) -> JudgedRounds:
    """The rounds with whole blocks verified; `temperatures` are those already applied."""
    rounds = [
        event
        for event in events
        if isinstance(event, Round)
        and event.confidence is not None
        and event.verified == len(temperatures)
    ]
    confidences = torch.tensor([r.confidence for r in rounds], dtype=torch.float64)
    return JudgedRounds(
        confidence_logits(confidences.reshape(-1, len(temperatures)), temperatures),
        torch.tensor([r.accepted for r in rounds], dtype=torch.long),
    )


def fit_shift(rounds: JudgedRounds) -> float:
    """Maximum-likelihood offset for every logit, with a free temperature per position.

    0 if all reached drafts were accepted, or none.
    """
    positions = torch.arange(rounds.logits.shape[1])
    is_reached = rounds.accepted[:, None] >= positions
    is_kept = rounds.survived[is_reached].double()
    if not 0.0 < is_kept.mean() < 1.0:
        return 0.0
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    log_temperatures = torch.zeros(len(positions), dtype=torch.float64, requires_grad=True)
    numbers = [shift, log_temperatures]
    optimizer = torch.optim.LBFGS(numbers, max_iter=100, line_search_fn="strong_wolfe")

    def surprise() -> float:
        optimizer.zero_grad()
        scaled = (rounds.logits + shift) * (-log_temperatures).exp()
        loss = F.binary_cross_entropy_with_logits(scaled[is_reached], is_kept)
        loss = loss + HOLD * sum(number.square().sum() for number in numbers)
        loss.backward()
        return float(loss.detach())

    optimizer.step(surprise)
    return float(shift.detach())


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
