"""The loss of a batch, or of a part of it, as one module that several devices may share.

Everything that needs the head's weights happens in `forward`, so that wrappers see all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from dspark.config import GraftConfig
from dspark.drafters.kinds import kind_of
from dspark.drafters.training_blocks import Blocks, sample_blocks
from dspark.graft.data.answer_file import Answer
from dspark.graft.target.frozen_target import FrozenTarget
from dspark.graft.train.loss import (
    LossWeights,
    OutputHead,
    RowTerms,
    distribution_loss,
    label_cross_entropy,
)
from dspark.graft.train.position_weights import by_confidence, by_place
from dspark.graft.train.selector_loss import selector_loss
from dspark.graft.train.supervised_rows import Rows, join, row_sums, supervised_rows
from dspark.models.domino_head import DominoHead
from dspark.models.head_module import HeadModule


@dataclass(frozen=True, slots=True)
class Sampled:
    """A sequence with its training blocks."""

    answer: Answer
    blocks: Blocks


@dataclass(frozen=True, slots=True)
class Part:
    """Some sequences of a batch, whole or some of their blocks; total_weight and tokens (the loss
    vocabulary) are the batch's."""

    sequences: Sequence[Sampled]
    total_weight: float
    tokens: torch.Tensor | None
    progress: float = 1.0  # of the training, from 0 to 1


class Objective(nn.Module):
    """The loss summed over the parts of a batch, and the sums for its report."""

    def __init__(self, head: HeadModule, target: FrozenTarget, config: GraftConfig) -> None:
        super().__init__()
        self.head, self.target, self.config = head, target, config
        training = kind_of(head.config).training
        assert training is not None
        self._hidden, self._rotary = training.hidden, head.rotary_table()
        outputs = head.output_map
        rank = 0 if outputs is None else outputs.markov_w2.weight.shape[1]
        self._num_candidates = getattr(head.config, "selector_top_k", 0)
        self._is_half = config.precision == "bfloat16"
        weight = target.output_head.to(torch.bfloat16 if self._is_half else torch.float32)
        self._output_head = OutputHead(weight, rank, target.softcap)

    def sample(self, batch: Sequence[Answer], generator: torch.Generator) -> list[Sampled]:
        """The blocks of a batch, independent of how it is divided."""
        device, size = self.target.embedding.device, self.head.config.block_size
        return [
            Sampled(
                answer,
                sample_blocks(
                    torch.tensor(answer.token_ids, device=device),
                    len(answer.prompt_ids),
                    self.config.anchors,
                    size,
                    generator,
                ),
            )
            for answer in batch
        ]

    def total_weight(self, batch: Sequence[Sampled]) -> float:
        """Total weight of the supervised positions, by which the loss is divided."""
        counts = torch.stack([each.blocks.supervised.sum(dim=0) for each in batch]).sum(dim=0)
        positions = torch.arange(len(counts), device=counts.device)
        return float((counts * self._decay(positions)).sum(dtype=torch.float64))

    def forward(self, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        """The part's share of the batch's loss, and its sums (rows.row_sums)."""
        device = self.target.embedding.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._is_half):  # casts weights once
            rows = self._rows(part.sequences)
        decayed = self._decay(rows.positions) / part.total_weight
        tokens = None if part.tokens is None else part.tokens.to(rows.labels.device)
        outputs = self.head.output_map
        w2 = None if outputs is None else outputs.markov_w2.weight
        head, labels = self._output_head, rows.labels
        if tokens is not None:
            head, labels = head.restricted(tokens), torch.searchsorted(tokens, labels)
            w2 = None if w2 is None else w2[tokens]
        if w2 is not None:
            head.load_markov(w2)
        c, weights = self.config, decayed
        of_terms = LossWeights(
            c.cross_entropy_weight, c.l1_weight, c.distillation_weight, c.nla_weight, c.lk_weight
        )
        if c.position_weights == "dpace":
            paced = label_cross_entropy(rows.hidden, rows.features, labels, head, c.chunk_rows)
            size = self.head.config.block_size
            paced = by_confidence(paced, rows.blocks, rows.positions, size, c.dpace_floor)
            weights = paced / part.total_weight  # of which a part of the batch knows nothing

        def loss_with(
            features: torch.Tensor | None, table: torch.Tensor | None
        ) -> tuple[torch.Tensor, RowTerms]:
            return distribution_loss(
                rows.hidden,
                features,
                table,
                rows.target_hidden,
                rows.target_rows,
                labels,
                weights,
                head,
                of_terms,
                c.chunk_rows,
                self._num_candidates,
            )

        loss, terms = loss_with(rows.features, w2)
        share = 1.0 - part.progress  # of the uncorrected logits: Domino begins with these alone
        if isinstance(self.head, DominoHead) and share > 0.0:
            assert rows.features is not None and w2 is not None
            base, _ = loss_with(torch.zeros_like(rows.features), w2.detach())
            loss = (1.0 - share) * loss + share * base
        if (selector := self.head.candidate_selector) is not None:
            choice, terms = selector_loss(
                selector, rows, terms, head, tokens, labels, weights, c.chunk_rows
            )
            loss = loss + c.selector_weight * choice
        surprise = loss.new_zeros(())
        if rows.confidence is not None:
            surprise = F.binary_cross_entropy_with_logits(
                rows.confidence, terms.accept_rate, decayed, reduction="sum"
            )
            loss = loss + c.confidence_weight * surprise
        losses = torch.stack([loss.detach(), surprise.detach()])
        return loss, row_sums(rows, terms, weights, losses, self.head.config.block_size)

    def _decay(self, positions: torch.Tensor) -> torch.Tensor:
        return by_place(positions, self.config.position_decay)

    def _rows(self, sequences: Sequence[Sampled]) -> Rows:
        """Applies to the head alone: the target's taps do not depend on it."""
        views = [self.target.view(each.answer.token_ids) for each in sequences]
        blocks, embedding = [each.blocks for each in sequences], self.target.embedding
        taps = [view.taps for view in views]
        hidden = self._hidden(self.head, self._rotary, embedding, taps, blocks)
        previous = torch.cat([each.previous for each in blocks])
        confidence = None
        if isinstance(self.head, DominoHead):
            before = embedding[previous].to(hidden.dtype)
            features: torch.Tensor | None = self.head.block_features(hidden, before)
        else:
            features, confidence = sequential(self.head, hidden, previous)
        counts = [len(each.anchors) for each in blocks]
        parts = zip(
            blocks,
            views,
            hidden.split(counts),
            _split(features, counts),
            _split(confidence, counts),
            strict=True,
        )
        return join([supervised_rows(own, view.hidden, *rest) for own, view, *rest in parts])


def _split(rows: torch.Tensor | None, counts: list[int]) -> Sequence[torch.Tensor | None]:
    return [None] * len(counts) if rows is None else rows.split(counts)


def sequential(
    head: HeadModule, hidden: torch.Tensor, previous: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """hidden [A, K, H], previous [A, K] -> Markov features [A, K, r], confidence [A, K]; None of
    what the head lacks."""
    markov, confidence = head.markov_head, head.confidence_head
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
