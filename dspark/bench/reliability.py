"""Reliability of confidences: predicted against observed survival of drafts."""

import math
from dataclasses import dataclass

import torch

BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Rounds of similar survival: mean predicted and mean observed survival."""

    rounds: int
    survival: float
    accepted: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """One position. auc is None if every round or none was accepted up to there.

    `noise` is the ECE that a perfect head would show, due to the number of rounds alone.
    """

    ece: float
    noise: float
    auc: float | None
    bins: tuple[Bin, ...]


def expected_noise(survival: torch.Tensor) -> torch.Tensor:
    """Expected ECE of rounds whose survival [N] is exactly right."""
    spread = _sums_by_bin(survival, survival * (1.0 - survival)).sqrt()
    return math.sqrt(2.0 / math.pi) * spread.sum() / len(survival)


def expected_calibration_error(survival: torch.Tensor, survived: torch.Tensor) -> torch.Tensor:
    """survival [N] against survived [N], over bins of equal width."""
    gaps = _sums_by_bin(survival, survival - survived.to(survival.dtype))
    return gaps.abs().sum() / len(survival)


def _sums_by_bin(survival: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[N] -> [BINS]."""
    bins = (survival * BINS).long().clamp(max=BINS - 1)
    return survival.new_zeros(BINS).scatter_add(0, bins, values)


def reliability_of(survival: torch.Tensor, survived: torch.Tensor) -> Reliability:
    """Predicted survival [N] of one position against the observed [N]."""
    sizes = _sums_by_bin(survival, torch.ones_like(survival))
    means = _sums_by_bin(survival, survival) / sizes
    shares = _sums_by_bin(survival, survived.to(survival.dtype)) / sizes
    columns = zip(sizes.tolist(), means.tolist(), shares.tolist(), strict=True)
    return Reliability(
        ece=float(expected_calibration_error(survival, survived)),
        noise=float(expected_noise(survival)),
        auc=ranking_quality(survival, survived),
        bins=tuple(Bin(int(size), mean, share) for size, mean, share in columns if size),
    )


def ranking_quality(survival: torch.Tensor, survived: torch.Tensor) -> float | None:
    """ROC-AUC of survival [N] for survived [N]: how often an accepted draft scored above a rejected
    one; ties count half."""
    num_kept = int(survived.sum())
    num_pairs = num_kept * (len(survived) - num_kept)
    if not num_pairs:
        return None
    _, place, sizes = survival.unique(return_inverse=True, return_counts=True)
    ranks = sizes.cumsum(0) - (sizes - 1) / 2  # from 1; ties get their mean rank
    return (float(ranks[place][survived].sum()) - num_kept * (num_kept + 1) / 2) / num_pairs
