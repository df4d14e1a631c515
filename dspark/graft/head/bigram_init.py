"""Initial Markov tables: the target's bigrams, its prediction from a single token.

Averaged over the data, the target's final hidden state after a token gives the logits of the next
token as far as that token determines them. The tables of rank r are the best approximation of
these logits, weighted by token frequency in the data.
"""

from collections.abc import Iterator

import torch

from dspark.graft.data.answer_file import Answer
from dspark.graft.target.frozen_target import FrozenTarget
from dspark.models.sequential_heads import MarkovHead

PRIOR_COUNT = 4.0  # a token seen this often gets equal weight with its prior from similar tokens
RIDGE = 1e-2
ROWS = 8192  # of a table at a time
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
        """Set both tables from the sums so far, which are used up: a second matrix of their size
        would need more memory than the training after it."""
        counts = self._counts
        mean = self._sums.sum(dim=0) / counts.sum()
        after = _after_each(counts, self._sums, mean, self.target.embedding)
        head = self.target.output_head
        weights = counts + UNSEEN * counts.mean()
        metric, inverse = _root(_scatter(head, weights, _mean(head, weights)) / weights.sum())
        _, directions = torch.linalg.eigh(metric @ _scatter(after, counts, 0 * mean) @ metric)
        directions = directions[:, -(markov.rank - 1) :]
        features, table = after @ (metric @ directions), _product(head, inverse @ directions)
        scale = features[counts > 0].std(dim=0).clamp_min(1e-6)
        rank = features.shape[1]
        markov.markov_w2.weight.zero_()  # a rank beyond the hidden size begins unused
        markov.markov_w1.weight[:, :rank] = features / scale
        markov.markov_w2.weight[:, :rank] = table * scale
        # One column carries the part common to all tokens.
        markov.markov_w1.weight[:, rank] = 1.0
        markov.markov_w2.weight[:, rank] = _product(head, mean)


def _after_each(
    counts: torch.Tensor, sums: torch.Tensor, mean: torch.Tensor, embedding: torch.Tensor
) -> torch.Tensor:
    """Deviation of the hidden state after each token [V, H], in the memory of `sums`; rare tokens
    are estimated from those with similar embeddings."""
    deviations = sums.addr_(counts, mean, alpha=-1)
    centre = _mean(embedding, counts)
    gram = _scatter(embedding, counts, centre)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    both = sum(part.t() @ deviations[rows] for rows, part in _parts(embedding, centre))
    slope = torch.linalg.solve(gram, both)
    for rows, part in _parts(embedding, centre):
        deviations[rows] += PRIOR_COUNT * (part @ slope)
    return deviations.div_((counts + PRIOR_COUNT).unsqueeze(1))


def _mean(matrix: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of the rows [H]."""
    total = sum(weights[rows] @ part for rows, part in _parts(matrix))
    return total / weights.sum()


def _scatter(matrix: torch.Tensor, weights: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Weighted sum over the rows of the outer products of their deviations from `centre` [H, H]."""
    parts = _parts(matrix, centre)
    return sum((part.t() @ (part * weights[rows].unsqueeze(1)) for rows, part in parts), 0 * centre)


def _product(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.cat([part @ right for _, part in _parts(matrix)])


def _parts(
    matrix: torch.Tensor, centre: torch.Tensor | None = None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Some rows of a matrix [V, H] at a time, in float32, less `centre`."""
    for start in range(0, len(matrix), ROWS):
        rows = slice(start, start + ROWS)
        part = matrix[rows].float()
        yield rows, part if centre is None else part - centre


def _root(symmetric: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Square root of a positive definite matrix [n, n], and its inverse."""
    values, vectors = torch.linalg.eigh(symmetric)
    roots = values.clamp_min(1e-6 * values[-1]).sqrt()
    return vectors * roots @ vectors.t(), vectors / roots @ vectors.t()
