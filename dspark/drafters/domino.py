"""Domino (Huang et al. 2026, arXiv 2605.29707): DFlash's block, corrected token by token by a GRU.

Its reference accepts a draft that equals the target's sample; here drafts are drawn from the
corrected logits and judged by that distribution, which accepts more and is as exact.
"""

from collections.abc import Sequence
from typing import Any

import torch

from dspark.checkpoints.domino_config import DominoConfig
from dspark.drafters.base import Chooser, Proposals
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.head_drafter import stack_present
from dspark.models.domino_head import DominoHead


class DominoDrafter(DSparkDrafter):
    """As DSparkDrafter, with Domino's sequential head; it reads the target's embedding."""

    module = DominoHead
    config: DominoConfig

    def _count_weights(self, num_columns: int) -> int:
        config, table = self.config, "embed_proj.2"
        of_head = {n: p.numel() for n, p in self._head.named_parameters() if table not in n}
        steps = sum(n for name, n in of_head.items() if name.startswith(("prefix_gru", "embed_p")))
        columns = num_columns * (config.hidden_size + config.projector_width * config.block_size)
        return int(sum(of_head.values()) + (config.block_size - 1) * steps + columns)

    def _choose_left_to_right(
        self, hidden: torch.Tensor, owns: Sequence[Any], anchors: torch.Tensor, chooser: Chooser
    ) -> Proposals:
        """As DSparkDrafter's."""
        head, vocabulary = self._head, self._vocabulary
        known, base_logits = vocabulary.column_ids(owns), vocabulary.logits(hidden, owns)
        previous, state = anchors, head.initial_state(hidden[:, 0])
        ids, probs = [], []
        for k in range(self.block_size):
            logits = base_logits[:, k]
            state = head.prefix_gru(self._embedding[previous], state)
            if k >= self.config.prefix_length:
                logits = logits + vocabulary.bias(head.features(hidden[:, k], state), owns)
            columns, chosen_probs = chooser.choose(logits, known)
            previous = vocabulary.token_ids(columns, owns)
            ids.append(previous)
            probs.append(
                [
                    None if p is None else vocabulary.distribution(p, own)
                    for p, own in zip(chosen_probs, owns, strict=True)
                ]
            )
        return Proposals(
            token_ids=torch.stack(ids, dim=1),
            probs=[stack_present(request_probs) for request_probs in zip(*probs, strict=True)],
            confidences=None,
        )
