"""The tokens that a step's loss covers.

Nearly all of the target's mass is on the tokens it writes often; others are sampled so that the
head unlearns them too, at a fraction of the cost.
"""

from collections.abc import Sequence

import torch

from dspark.config import GraftConfig
from dspark.graft.data.answer_file import Answer
from dspark.graft.train.seeds import generator_of


class LossVocabulary:
    """`drafted` are the ascending ids the head will draft from; a step's loss covers more."""

    def __init__(self, answers: Sequence[Answer], vocab_size: int, config: GraftConfig) -> None:
        self._num_drawn, self._seed = config.loss_vocabulary, config.seed
        self.drafted = _most_frequent(answers, vocab_size, config.draft_vocabulary)
        self._is_drafted = torch.zeros(vocab_size, dtype=torch.bool)
        self._is_drafted[self.drafted] = True
        self._others = (~self._is_drafted).nonzero().squeeze(1)

    def at(self, step: int, batch: Sequence[Answer]) -> torch.Tensor | None:
        """Ascending token ids [n], including the batch's own; None for the whole vocabulary."""
        if not self._num_drawn or self._num_drawn >= len(self._others):
            return None
        drawn = generator_of(self._seed, "vocabulary", step)
        order = torch.randperm(len(self._others), generator=drawn)
        is_included = self._is_drafted.clone()
        is_included[self._others[order[: self._num_drawn]]] = True
        is_included[[i for answer in batch for i in answer.token_ids]] = True
        return is_included.nonzero().squeeze(1)


def _most_frequent(answers: Sequence[Answer], vocab_size: int, limit: int) -> torch.Tensor:
    """Ascending ids [n] of the tokens in the sequences, the `limit` most frequent unless 0."""
    ids = torch.tensor([i for answer in answers for i in answer.token_ids])
    counts = torch.bincount(ids, minlength=vocab_size)
    present = int((counts > 0).sum())
    order = counts.argsort(descending=True, stable=True)
    return order[: min(limit or present, present)].sort().values
