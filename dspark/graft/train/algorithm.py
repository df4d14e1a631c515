"""What differs between the heads that can be trained: how a sequence becomes supervised rows.

Loss weights are settings (config.RECIPES); optimizer, steps and the loss itself are the trainer's.
"""

from typing import Protocol

import torch

from dspark.drafters.eagle3 import Eagle3Head
from dspark.graft.target.frozen_target import TargetView
from dspark.graft.train.blocks import Blocks, block_hidden
from dspark.graft.train.eagle3_blocks import unrolled_hidden
from dspark.graft.train.supervised_rows import Rows, supervised_rows
from dspark.models.dspark_head import DSparkHead
from dspark.models.sequential_heads import MarkovHead

DraftHead = DSparkHead | Eagle3Head


class Algorithm(Protocol):
    """`markov_head` adds its table to the logits, where there is one."""

    markov_head: MarkovHead | None

    def rows(self, view: TargetView, blocks: Blocks) -> Rows:
        """Of one sequence."""
        ...


def algorithm_of(head: DraftHead, embedding: torch.Tensor) -> Algorithm:
    """`embedding` [V, H] is the target's."""
    if isinstance(head, Eagle3Head):
        return UnrolledAlgorithm(head, embedding)
    return ParallelAlgorithm(head, embedding)


class ParallelAlgorithm:
    """DSpark: a block in one pass, then the sequential head. DFlash is the case without one."""

    def __init__(self, head: DSparkHead, embedding: torch.Tensor) -> None:
        self.head, self.markov_head, self._embedding = head, head.markov_head, embedding
        self._rotary = head.rotary_table()

    def rows(self, view: TargetView, blocks: Blocks) -> Rows:
        hidden = block_hidden(self.head, self._rotary, self._embedding, view.taps, blocks)
        features, confidence = self.sequential(hidden, blocks.previous)
        return supervised_rows(blocks, view.hidden, hidden, features, confidence)

    def sequential(
        self, hidden: torch.Tensor, previous: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """hidden [A, K, H], previous [A, K] -> Markov features [A, K, r], confidence [A, K]."""
        markov, confidence = self.head.markov_head, self.head.confidence_head
        features = embedding = None
        if markov is not None:
            embedding = markov.embed(previous)
            state = markov.initial_state(hidden[:, 0])
            steps = []
            for k in range(hidden.shape[1]):
                feature, state = markov.step(embedding[:, k], hidden[:, k], state)
                steps.append(feature)
            features = torch.stack(steps, dim=1)
        return features, None if confidence is None else confidence(hidden, embedding)


class UnrolledAlgorithm:
    """Eagle3: token after token from the head's own hidden state. MTP-1 is the case of one."""

    markov_head: MarkovHead | None = None

    def __init__(self, head: Eagle3Head, embedding: torch.Tensor) -> None:
        self.head, self._embedding = head, embedding
        self._rotary = head.rotary_table()

    def rows(self, view: TargetView, blocks: Blocks) -> Rows:
        hidden = unrolled_hidden(self.head, self._rotary, self._embedding, view.taps, blocks)
        return supervised_rows(blocks, view.hidden, hidden)
