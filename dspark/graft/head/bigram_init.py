"""The Markov head's start: what the target makes of a token alone, whatever stands before it.

Averaged over the data, the target's final hidden state after a token gives the logits of its
successor as far as that token tells them. The table of rank r is the best one for these logits
among tokens as frequent as in the data.
"""

import torch

from dspark.graft.data.answer_file import Answer
from dspark.graft.target.frozen_target import FrozenTarget
from dspark.models.sequential_heads import MarkovHead

PRIOR_COUNT = 4.0  # a token seen this often is believed half as much as those like it
RIDGE = 1e-2
UNSEEN = 0.1  # weight of a token that the data does not hold, in occurrences of an average one


class Bigrams:
    """How often each token occurs in the answers, and the target's hidden states at it, summed."""

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
        """Set both tables to what was added so far."""
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
        # One column carries what holds after every token.
        markov.markov_w1.weight[:, rank] = 1.0
        markov.markov_w2.weight[:, rank] = head @ mean


def _after_each(
    counts: torch.Tensor, sums: torch.Tensor, mean: torch.Tensor, embedding: torch.Tensor
) -> torch.Tensor:
    """Deviation of the hidden state after each token [V, H]; rare tokens are guessed from those
    with a similar embedding."""
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
    """Square root of a positive matrix, and its inverse."""
    values, vectors = torch.linalg.eigh(symmetric)
    roots = values.clamp_min(1e-6 * values[-1]).sqrt()
    return vectors * roots @ vectors.t(), vectors / roots @ vectors.t()
