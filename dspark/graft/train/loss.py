"""The loss against the target's distribution over the whole vocabulary, a few rows at a time.

Gradients are computed in the forward pass, so that no logits outlive their chunk: the output head
is frozen, and only the chunk's gradients for the hidden states and the Markov table are needed.
"""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

import torch

from dspark_kernels import TermWeights, distribution_terms
from dspark_kernels.distribution_terms import LEAST_SHARED, LK_DECAY


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weights of a row's terms: CE of the label, ‖p_d - p_t‖₁, and those that DeepSpec's loss has
    not: CE of the target's distribution, and the two of TermWeights that acceptance shapes.

    CE of the target's distribution covers every token at every position, and unlike L1 its gradient
    does not vanish for tokens that the draft gives no probability.
    """

    cross_entropy: float
    l1: float
    distillation: float = 0.0
    nla: float = 0.0
    lk: float = 0.0

    def of_rows(self, terms: "RowTerms") -> torch.Tensor:
        """[R]."""
        accepted, distillation = terms.accept_rate, terms.distillation
        share = torch.exp(-LK_DECAY * accepted)
        return (
            self.cross_entropy * terms.cross_entropy
            + self.l1 * 2.0 * (1.0 - accepted)
            + self.distillation * distillation
            - self.nla * accepted.clamp(min=LEAST_SHARED).log()
            + self.lk * (share * distillation + (1.0 - share) * (1.0 - accepted))
        )


@dataclass(slots=True)
class RowTerms:
    """Per row, without gradient. accept_rate is 1 - L1 / 2, the mass both distributions share.

    `candidates` [R, C] are the columns of the largest draft logits, where they were asked for, and
    `target_probs` [R, C] the target's probabilities of them.
    """

    cross_entropy: torch.Tensor
    accept_rate: torch.Tensor
    distillation: torch.Tensor
    candidates: torch.Tensor
    target_probs: torch.Tensor


class OutputHead:
    """The frozen output head, with room for the trained Markov table.

    One product [hidden, features] · [W, W2]^T gives the draft logits. With a `softcap` c, Gemma's,
    the logits of W are c · tanh(logits / c), the target's too; the Markov table's are as they are.

    Products are computed in the format of `weight`; what they give is float32, and so is all that
    follows.
    """

    def __init__(self, weight: torch.Tensor, rank: int, softcap: float | None = None) -> None:
        self.hidden_size, self.rank, self.softcap = weight.shape[1], rank, softcap
        self.joined = weight.new_empty(weight.shape[0], self.hidden_size + rank)
        self.joined[:, : self.hidden_size] = weight.detach()
        self.weight = self.joined[:, : self.hidden_size]
        self._buffers: tuple[torch.Tensor, ...] = ()
        self._part: OutputHead | None = None

    def restricted(self, tokens: torch.Tensor) -> "OutputHead":
        """The output head of these tokens [n] only. The same object is refilled each time."""
        if self._part is None or len(self._part.joined) != len(tokens):
            self._part = OutputHead(self.weight[tokens], self.rank, self.softcap)
        self._part.weight.copy_(self.weight[tokens])
        return self._part

    def load_markov(self, w2: torch.Tensor) -> None:
        """Copy the current Markov table [V, r]; once per optimizer step."""
        self.joined[:, self.hidden_size :] = w2.detach()

    def buffers(self, num_rows: int, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Three [num_rows, V] buffers, reused: fresh pages would cost as much as the softmax."""
        if not self._buffers or len(self._buffers[0]) < num_rows:
            shape = (num_rows, len(self.joined))
            self._buffers = tuple(like.new_empty(shape) for _ in range(3))
        return self._buffers


def distribution_loss(
    hidden: torch.Tensor,
    features: torch.Tensor | None,
    w2: torch.Tensor | None,
    target_hidden: torch.Tensor,
    target_rows: torch.Tensor,
    labels: torch.Tensor,
    row_weights: torch.Tensor,
    head: OutputHead,
    weights: LossWeights,
    chunk_rows: int = 128,
    num_candidates: int = 0,
) -> tuple[torch.Tensor, RowTerms]:
    """Sum over rows of row_weight times the terms that `weights` names.

    hidden [R, H], features [R, r] (Markov), w2 [V, r] as last given to head.load_markov,
    target_hidden [P, H], labels [R]. Row i is compared with the target at target_rows[i], which
    must be ascending: rows that share a target position then share its logits.
    """
    rows = hidden if features is None else torch.cat([hidden, features], dim=-1)
    table = rows.new_zeros(0) if w2 is None else w2
    first, second, third = (rows.new_zeros(len(rows)) for _ in range(3))
    target_probs = rows.new_zeros(len(rows), num_candidates)
    terms = RowTerms(first, second, third, target_probs.long(), target_probs)
    job = _Job(target_hidden, target_rows, labels, row_weights, head, weights, chunk_rows, terms)
    loss: torch.Tensor = _DistributionLoss.apply(rows, table, job)  # type: ignore[no-untyped-call]
    return loss, terms


@torch.no_grad()
def label_cross_entropy(
    hidden: torch.Tensor,
    features: torch.Tensor | None,
    labels: torch.Tensor,
    head: OutputHead,
    chunk_rows: int,
) -> torch.Tensor:
    """[R] without gradient, of rows as distribution_loss takes them."""
    rows = hidden if features is None else torch.cat([hidden, features], dim=-1)
    draft, *_ = head.buffers(min(chunk_rows, len(rows)), rows)
    found = []
    for part, own in zip(rows.split(chunk_rows), labels.split(chunk_rows), strict=True):
        logits = _draft_logits(part, draft[: len(part)], head)
        found.append(logits.logsumexp(-1) - logits.gather(1, own.unsqueeze(1)).squeeze(1))
    return torch.cat(found)


@dataclass(frozen=True, slots=True)
class _Job:
    target_hidden: torch.Tensor
    target_rows: torch.Tensor
    labels: torch.Tensor
    row_weights: torch.Tensor
    head: OutputHead
    weights: LossWeights
    chunk_rows: int
    terms: RowTerms


class _DistributionLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, w2: torch.Tensor, job: _Job) -> torch.Tensor:
        wants_grad = ctx.needs_input_grad[0]
        rank = job.head.rank
        grad_rows = torch.empty_like(rows) if wants_grad else None
        grad_w2 = torch.zeros_like(w2) if wants_grad and rank else None
        for chunk in _chunks(rows, job):
            grad_logits = _compare(chunk, job, has_gradient=wants_grad)
            if grad_rows is None:
                continue
            if grad_w2 is not None:
                grad_w2.addmm_(grad_logits.t(), chunk.rows[:, job.head.hidden_size :])
            _row_gradient(grad_logits, chunk, job.head, grad_rows[chunk.span])
        ctx.grads = (grad_rows, grad_w2)
        return (job.row_weights * job.weights.of_rows(job.terms)).sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (scale,) = grad_outputs
        grad_rows, grad_w2 = ctx.grads
        del ctx.grads
        return grad_rows.mul_(scale), None if grad_w2 is None else grad_w2.mul_(scale), None


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One span of rows, with the buffers for its distributions."""

    span: slice
    rows: torch.Tensor
    draft: torch.Tensor  # [n, V]
    target: torch.Tensor  # [unique target positions, V]
    expanded: torch.Tensor  # [n, V]


def _chunks(rows: torch.Tensor, job: _Job) -> Iterator[_Chunk]:
    size = min(job.chunk_rows, len(rows))
    draft, target, expanded = job.head.buffers(size, rows)
    for start in range(0, len(rows), size):
        span = slice(start, min(start + size, len(rows)))
        n = span.stop - start
        positions = int(job.target_rows[span.stop - 1] - job.target_rows[start]) + 1
        if positions > len(target):  # unused positions between two rows
            target = rows.new_empty(positions, job.head.joined.shape[0])
        yield _Chunk(span, rows[span], draft[:n], target[:positions], expanded[:n])


def _compare(chunk: _Chunk, job: _Job, *, has_gradient: bool) -> torch.Tensor:
    """Fills in the chunk's terms; if has_gradient, the loss's gradient for its logits [n, V]."""
    span, weights = chunk.span, job.weights
    target_rows = job.target_rows[span]
    first = int(target_rows[0])
    target_hidden = job.target_hidden[first : first + len(chunk.target)]
    target = _cap(_logits(target_hidden, job.head.weight, chunk.target), job.head.softcap)
    logits = _draft_logits(chunk.rows, chunk.draft, job.head)
    if job.terms.candidates.shape[1]:
        _note_candidates(logits, target, target_rows - first, job.terms, span)
    terms = distribution_terms(
        logits,
        target,
        target_rows - first,
        job.labels[span],
        job.row_weights[span],
        TermWeights(*astuple(weights)),
        chunk.expanded,
        has_gradient=has_gradient,
    )
    job.terms.cross_entropy[span] = terms.cross_entropy
    job.terms.accept_rate[span] = terms.accept_rate
    job.terms.distillation[span] = terms.distillation
    return logits


def _note_candidates(
    logits: torch.Tensor,
    target: torch.Tensor,
    target_rows: torch.Tensor,
    terms: RowTerms,
    span: slice,
) -> None:
    """Of draft logits [n, V], compared with target_rows [n] of target logits [P, V]."""
    columns = logits.topk(terms.candidates.shape[1], dim=-1).indices
    of_target = target[target_rows.unsqueeze(1), columns]
    log_sums = target.logsumexp(-1)[target_rows].unsqueeze(1)
    terms.candidates[span], terms.target_probs[span] = columns, (of_target - log_sums).exp()


def _logits(rows: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return _product(rows, weight.t(), out)


def _product(
    rows: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """In the matrix's format; the result is in `out`'s, if given."""
    if out is None or rows.dtype == out.dtype == matrix.dtype:
        return torch.mm(rows.to(matrix.dtype), matrix, out=out)
    return out.copy_(rows.to(matrix.dtype) @ matrix)


def _cap(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """In place."""
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def _draft_logits(rows: torch.Tensor, out: torch.Tensor, head: OutputHead) -> torch.Tensor:
    """rows [n, H + r] -> [n, V], in `out`."""
    if head.softcap is None:
        return _logits(rows, head.joined, out)
    base, features = rows.split([head.hidden_size, head.rank], dim=-1)
    logits = _cap(_logits(base, head.weight, out), head.softcap)
    return logits.add_(_product(features, head.joined[:, head.hidden_size :].t()))


def _row_gradient(
    grad_logits: torch.Tensor, chunk: _Chunk, head: OutputHead, out: torch.Tensor
) -> None:
    """[n, H + r] into `out`. The slope of the cap is recomputed rather than kept."""
    _product(grad_logits, head.joined, out)
    if head.softcap is None:
        return
    base = chunk.rows[:, : head.hidden_size]
    capped = _cap(_logits(base, head.weight, chunk.expanded), head.softcap).div_(head.softcap)
    grad_base = grad_logits.addcmul_(grad_logits, capped.square_(), value=-1.0)
    _product(grad_base, head.weight, out[:, : head.hidden_size])
