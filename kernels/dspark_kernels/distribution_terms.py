"""Distances of a draft's distribution from the target's over the whole vocabulary, with gradients.

One program a row walks the vocabulary in chunks: once for both normalisers, once for the distance,
once for the gradient, which takes the place of the logits. The products with the output head stay
with cuBLAS, a few rows at a time: a second and third product would cost more than storing the
logits.
"""

from typing import NamedTuple

import torch

from dspark_kernels.backend import jit, next_power_of_2, tl, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.rounding import round_to

BLOCK = 4096
LEAST_SHARED = 1e-5  # below it -log a is constant
LK_DECAY = 3.0
LEAST, SLOPE = tl.constexpr(LEAST_SHARED), tl.constexpr(-LK_DECAY)
FINITE_LOWEST = tl.constexpr(-1e38)  # unlike -inf, it can be subtracted from itself


class TermWeights(NamedTuple):
    """Weights of a row's terms: CE of the label, ‖p_d - p_t‖₁, CE of the target's distribution, and
    two of the shared mass a = 1 - ½‖p_d - p_t‖₁: -log a, and λ · (the CE before it) plus
    (1 - λ) · (1 - a) with λ = exp(-3 a), which has no gradient of its own."""

    cross_entropy: float
    l1: float
    distillation: float
    nla: float = 0.0
    lk: float = 0.0


class DistributionTerms(NamedTuple):
    """[n] each. accept_rate is 1 - L1 / 2; distillation is zero if nothing of it has weight."""

    cross_entropy: torch.Tensor
    accept_rate: torch.Tensor
    distillation: torch.Tensor


def distribution_terms_reference(
    draft_logits: torch.Tensor,
    target_logits: torch.Tensor,
    target_rows: torch.Tensor,
    labels: torch.Tensor,
    row_weights: torch.Tensor,
    weights: TermWeights,
    expanded: torch.Tensor,
    *,
    has_gradient: bool = True,
) -> DistributionTerms:
    """draft_logits [n, V], target_logits [P, V] of which row i compares with target_rows[i],
    labels and row_weights [n]; expanded [n, V] is room to work in, target_logits is used up.

    draft_logits become the gradient of row_weight · (weighted terms) for them if has_gradient.
    """
    target = torch.softmax(target_logits, dim=-1, out=target_logits)
    target_probs = torch.index_select(target, 0, target_rows, out=expanded)
    of_label = draft_logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    is_distilled = bool(weights.distillation or weights.lk)
    of_target = _row_dots(target_probs, draft_logits) if is_distilled else None
    largest, where = draft_logits.max(dim=-1, keepdim=True)
    draft_probs = torch.softmax(draft_logits, dim=-1, out=draft_logits)
    log_sum = (largest - draft_probs.gather(1, where).log()).squeeze(1)

    difference = torch.sub(draft_probs, target_probs, out=target_probs)
    distance = torch.linalg.vector_norm(difference, ord=1, dim=-1)
    terms = DistributionTerms(
        cross_entropy=log_sum - of_label,
        accept_rate=(1.0 - 0.5 * distance).clamp_(0.0, 1.0),
        distillation=torch.zeros_like(log_sum) if of_target is None else log_sum - of_target,
    )
    if has_gradient:
        _gradient(draft_probs, difference, labels, row_weights, weights, terms.accept_rate)
    return terms


def _row_dots(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """[n, V] · [n, V] -> [n]."""
    return torch.bmm(one.unsqueeze(1), other.unsqueeze(2)).flatten()


def _gradient(
    draft_probs: torch.Tensor,
    difference: torch.Tensor,
    labels: torch.Tensor,
    row_weights: torch.Tensor,
    weights: TermWeights,
    accept_rate: torch.Tensor,
) -> None:
    """a·(p_d - onehot) + b·p_d·(s - Σ p_d·s) + c·(p_d - p_t) with s = sign(p_d - p_t).

    In place of draft_probs; difference is used up.
    """
    row_weights = row_weights.unsqueeze(1)
    share = torch.exp(-LK_DECAY * accept_rate)
    of_l1 = weights.l1 + 0.5 * weights.lk * (1.0 - share)
    of_l1 = of_l1 + 0.5 * weights.nla * (accept_rate > LEAST_SHARED) / accept_rate.clamp(
        min=LEAST_SHARED
    )
    of_distillation = (weights.distillation + weights.lk * share).unsqueeze(1)
    a, b = row_weights * weights.cross_entropy, row_weights * of_l1.unsqueeze(1)
    is_distilled = bool(weights.distillation or weights.lk)
    if is_distilled:
        sign = torch.sign(difference)
        difference.mul_(row_weights * of_distillation)
    else:
        sign = difference.sign_()
    mean_sign = _row_dots(draft_probs, sign).unsqueeze(1)
    grad = draft_probs.mul_(sign.mul_(b).add_(a - b * mean_sign))
    if is_distilled:
        grad.add_(difference)
    grad.scatter_add_(1, labels.unsqueeze(1), -a)


def distribution_terms(
    draft_logits: torch.Tensor,
    target_logits: torch.Tensor,
    target_rows: torch.Tensor,
    labels: torch.Tensor,
    row_weights: torch.Tensor,
    weights: TermWeights,
    expanded: torch.Tensor,
    *,
    has_gradient: bool = True,
) -> DistributionTerms:
    """As distribution_terms_reference; the kernel leaves `expanded` and target_logits alone."""
    if not use_triton(draft_logits):
        return distribution_terms_reference(
            draft_logits, target_logits, target_rows, labels, row_weights, weights, expanded,
            has_gradient=has_gradient,
        )  # fmt: skip
    num_rows, num_tokens = draft_logits.shape
    made = [
        torch.empty(num_rows, dtype=torch.float32, device=draft_logits.device) for _ in range(3)
    ]
    terms_kernel[(num_rows,)](
        draft_logits, target_logits, target_rows, labels, row_weights, *made, *weights, num_tokens,
        HAS_GRADIENT=has_gradient, BLOCK=min(BLOCK, next_power_of_2(num_tokens)), num_warps=16,
    )  # fmt: skip
    return DistributionTerms(*(term.to(row_weights.dtype) for term in made))


@jit
def chunk_of(row: tl.tensor, token: tl.tensor, num_tokens: tl.tensor) -> tl.tensor:
    """Logits of a row as float32; beyond the vocabulary they are -inf."""
    return tl.load(row + token, mask=token < num_tokens, other=float("-inf")).to(tl.float32)


@jit
def log_sum_exp(row: tl.tensor, num_tokens: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    largest = tl.full((BLOCK,), FINITE_LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, num_tokens, BLOCK):
        value = chunk_of(row, first + tl.arange(0, BLOCK), num_tokens)
        larger = tl.maximum(largest, value)
        total = total * tl.exp(largest - larger) + tl.exp(value - larger)
        largest = larger
    top = tl.max(largest, axis=0)
    return top + tl.log(tl.sum(total * tl.exp(largest - top), axis=0))


@jit
def sign(x: tl.tensor) -> tl.tensor:
    return (x > 0).to(tl.float32) - (x < 0).to(tl.float32)


@jit
def terms_kernel(
    draft_logits: tl.tensor,  # [n, V], the gradient afterwards
    target_logits: tl.tensor,  # [P, V]
    target_rows: tl.tensor,
    labels: tl.tensor,
    row_weights: tl.tensor,
    cross_entropies: tl.tensor,
    accept_rates: tl.tensor,
    distillations: tl.tensor,
    of_cross_entropy: tl.tensor,
    of_l1: tl.tensor,
    of_distillation: tl.tensor,
    of_nla: tl.tensor,
    of_lk: tl.tensor,
    num_tokens: tl.tensor,
    HAS_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    draft_row = draft_logits + row.to(tl.int64) * num_tokens
    target_row = target_logits + tl.load(target_rows + row).to(tl.int64) * num_tokens
    label = tl.load(labels + row)
    draft_sum = log_sum_exp(draft_row, num_tokens, BLOCK)
    target_sum = log_sum_exp(target_row, num_tokens, BLOCK)
    tl.store(cross_entropies + row, draft_sum - tl.load(draft_row + label).to(tl.float32))

    distance = tl.zeros((BLOCK,), tl.float32)
    mean_sign = tl.zeros((BLOCK,), tl.float32)
    of_target = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, num_tokens, BLOCK):
        token = first + tl.arange(0, BLOCK)
        logit = chunk_of(draft_row, token, num_tokens)
        draft = tl.exp(logit - draft_sum)
        target = tl.exp(chunk_of(target_row, token, num_tokens) - target_sum)
        difference = draft - target
        distance += tl.abs(difference)
        mean_sign += draft * sign(difference)
        of_target += tl.where(target > 0, target * logit, 0.0)
    accept_rate = 1.0 - 0.5 * tl.sum(distance, axis=0)
    accept_rate = tl.minimum(tl.maximum(accept_rate, 0.0), 1.0)
    tl.store(accept_rates + row, accept_rate)
    if (of_distillation != 0) | (of_lk != 0):
        tl.store(distillations + row, draft_sum - tl.sum(of_target, axis=0))
    else:
        tl.store(distillations + row, 0.0)

    if HAS_GRADIENT:
        weight = tl.load(row_weights + row).to(tl.float32)
        share = tl.exp(accept_rate * SLOPE)
        by_distance = of_l1 + 0.5 * of_lk * (1.0 - share)
        by_distance += tl.where(accept_rate > LEAST, 0.5 * of_nla / accept_rate, 0.0)
        a, b = weight * of_cross_entropy, weight * by_distance
        c = weight * (of_distillation + of_lk * share)
        offset = a - b * tl.sum(mean_sign, axis=0)
        for first in range(0, num_tokens, BLOCK):
            token = first + tl.arange(0, BLOCK)
            draft = tl.exp(chunk_of(draft_row, token, num_tokens) - draft_sum)
            target = tl.exp(chunk_of(target_row, token, num_tokens) - target_sum)
            difference = draft - target
            grad = draft * (offset + b * sign(difference)) + c * difference
            grad -= tl.where(token == label, a, 0.0)
            rounded = round_to(grad, draft_logits.dtype.element_ty)
            tl.store(draft_row + token, rounded, mask=token < num_tokens)


def builds() -> list[KernelBuild]:
    names = ("cross_entropies", "accept_rates", "distillations")
    numbers = ("of_cross_entropy", "of_l1", "of_distillation", "of_nla", "of_lk")
    kernels = []
    for element in ("bf16", "fp32"):
        signature = {"draft_logits": f"*{element}", "target_logits": f"*{element}"}
        signature |= {"target_rows": "*i64", "labels": "*i64", "row_weights": "*fp32"}
        signature |= (
            dict.fromkeys(names, "*fp32") | dict.fromkeys(numbers, "fp32") | {"num_tokens": "i32"}
        )
        constants = {"HAS_GRADIENT": True, "BLOCK": BLOCK}
        kernels.append(
            KernelBuild(f"loss terms {element}", terms_kernel, signature, constants, num_warps=16)
        )
    return kernels
