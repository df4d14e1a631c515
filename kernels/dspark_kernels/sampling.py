"""From logits to a distribution, and a draw from it: by one number, or by each token's noise."""

import torch
from torch.nn.functional import threshold

FAINTEST = -87.0  # exponents of less are subnormal
LIKELY = 2.0**-10  # few tokens are, and of most rows they are the nucleus


def scaled(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """logits [..., V] -> logits / temperature in float32, less the largest of each row."""
    logits = logits.float()
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def kept(
    logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> torch.Tensor:
    """As scaled, and -inf for the tokens that are never drawn. temperature must be positive.

    top_k keeps the k largest logits (0: all), top_p then the smallest set of likeliest tokens
    whose mass reaches p; the likeliest token always stays.
    """
    scores = scaled(logits, temperature)
    if 0 < top_k < scores.shape[-1]:
        kth = scores.topk(top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < kth, float("-inf"))
    if top_p < 1.0:
        scores = _nucleus(scores, top_p)
    return scores


def _nucleus(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Tokens as likely as the last one kept stay too, so that no order among equals decides."""
    probs = _softmax(scores)
    if probs.device.type == "cpu":  # a card would be waited for
        cuts = [_cut_of_row(row, top_p) for row in probs.view(-1, probs.shape[-1])]
        cut = torch.stack(cuts).view(*probs.shape[:-1], 1)
    else:
        cut, _ = _cut(probs, top_p)
    return scores.masked_fill(probs < cut, float("-inf"))


def _cut_of_row(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """As _cut, of probs [V], but only likely tokens are sorted: sums begin with them, so that what
    lies beyond the cut changes no bit of it."""
    for least in (LIKELY, (1 - top_p) / (2 * len(probs))):
        likely = probs[probs > least]
        if len(likely):
            cut, num_kept = _cut(likely, top_p)
            if int(num_kept) < len(likely):
                return cut
    return _cut(probs, top_p)[0]


def _cut(probs: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """probs [..., X] -> the least that is kept and the number before any equal to it, [..., 1]."""
    ordered = probs.sort(dim=-1, descending=True).values
    mass_before = ordered.cumsum(dim=-1) - ordered
    num_kept = (mass_before < top_p).sum(dim=-1, keepdim=True).clamp_(min=1)
    return ordered.gather(-1, num_kept - 1), num_kept


def probabilities(
    logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> torch.Tensor:
    """logits [..., V] -> float32 probabilities [..., V] of the tokens that `kept` keeps."""
    return _softmax(kept(logits, temperature, top_k, top_p))


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """Of scores of which the largest is 0. On a CPU subnormal exponentials would take ten times as
    long as all others; they are 0."""
    if scores.device.type == "cpu":
        scores = threshold(scores, FAINTEST, float("-inf"))
    return scores.softmax(dim=-1)


def draw(probs: torch.Tensor, generator: torch.Generator) -> int:
    """One token id from probs [V], by inverting the cumulative sum with a single uniform number."""
    cumulative = probs.double().cumsum(dim=0)
    point = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[-1].cpu()
    index = int(torch.searchsorted(cumulative, point.to(cumulative.device), right=True))
    return index if index < probs.shape[0] else int(probs.argmax())  # rounding reached the total


def race(
    logits: torch.Tensor, noise: torch.Tensor, temperature: float, top_k: int, top_p: float
) -> int:
    """logits [V] of any device, Gumbel noise [V] on the CPU -> the column where their sum is
    largest: over all noise a draw from `probabilities`.

    One row at a time and summed on the CPU, so that a row's result does not depend on the batch.
    """
    scores = kept(logits, temperature, top_k, top_p)
    if scores.device.type != "cpu":  # a card divides in another way
        is_kept = scores.isfinite().cpu()
        scores = scaled(logits.cpu(), temperature).masked_fill_(~is_kept, float("-inf"))
    return int((scores + noise).argmax())
