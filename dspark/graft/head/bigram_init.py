"""Initial Markov tables: the target's bigrams, its prediction from a single token.

Averaged over the data, the target's final hidden state after a token gives the logits of the next
token as far as that token determines them. The tables of rank r are the best approximation of
these logits, weighted by token frequency in the data.
"""

import torch

from dspark.graft.data.answer_file import Answer
from dspark.graft.target.frozen_target import FrozenTarget
from dspark.models.sequential_heads import MarkovHead

PRIOR_COUNT = 4.0  # a token seen this often gets equal weight with its prior from similar tokens
RIDGE = 1e-2
UNSEEN = 0.1  # weight of a token missing from the data, in occurrences of an average one


class Bigrams:
    """Counts of each token in the answers, and sums of the target's hidden states at it."""

    def __init__(self, target: FrozenTarget) -> None:
        vocab, hidden = target.output_head.shape
        self.target = target
        self._counts = torch.zeros(vocab, device=target.output_head.device)
        self._sums = torch.zeros(vocab, hidden, device=self._counts.device)

    def add(self, answer: Answer) -> None:
        start = len(answer.prompt_ids) - 1
        states = self.target.view(answer.token_ids).hidden[start:]
        ids = torch.tensor(answer.token_ids[start:], device=self._counts.device)
        self._counts.index_add_(0, ids, torch.ones_like(ids, dtype=self._counts.dtype))
        self._sums.index_add_(0, ids, states)

    @torch.no_grad()
    def fill(self, markov: MarkovHead) -> None:
        """Set both tables from the sums so far."""
        counts = self._counts
        mean = self._sums.sum(dim=0) / counts.sum()
        after = _after_each(counts, self._sums, mean, self.target.embedding.float())
        head = self.target.output_head.float()
        metric, inverse = _root(_covariance(head, counts + UNSEEN * counts.mean()))
        whitened = after @ metric
        _, directions = torch.linalg.eigh(whitened.t() @ (whitened * counts.unsqueeze(1)))
        directions = directions[:, -(markov.rank - 1) :]
        features, table = whitened @ directions, head @ (inverse @ directions)
        scale = features[counts > 0].std(dim=0).clamp_min(1e-6)
        rank = features.shape[1]
        markov.markov_w2.weight.zero_()  # a rank beyond the hidden size begins unused
        markov.markov_w1.weight[:, :rank] = features / scale
        markov.markov_w2.weight[:, :rank] = table * scale
        # One column carries the part common to all tokens.
        markov.markov_w1.weight[:, rank] = 1.0
        markov.markov_w2.weight[:, rank] = head @ mean


def _after_each(
    counts: torch.Tensor, sums: torch.Tensor, mean: torch.Tensor, embedding: torch.Tensor
) -> torch.Tensor:
    """Deviation of the hidden state after each token [V, H]; rare tokens are estimated from those
    with similar embeddings."""
    centred = embedding - (counts @ embedding) / counts.sum()
    deviations = sums - counts.unsqueeze(1) * mean
    gram = centred.t() @ (centred * counts.unsqueeze(1))
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    guess = centred @ torch.linalg.solve(gram, centred.t() @ deviations)
    out: torch.Tensor = (deviations + PRIOR_COUNT * guess) / (counts + PRIOR_COUNT).unsqueeze(1)
    return out


def _covariance(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    weights = weights / weights.sum()
    centred = rows - weights @ rows
    return centred.t() @ (centred * weights.unsqueeze(1))


def _root(symmetric: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Square root of a positive definite matrix [n, n], and its inverse."""
    values, vectors = torch.linalg.eigh(symmetric)
    roots = values.clamp_min(1e-6 * values[-1]).sqrt()
    return vectors * roots @ vectors.t(), vectors / roots @ vectors.t()
