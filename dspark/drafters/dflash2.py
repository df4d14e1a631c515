"""DFlash 2 (z-lab 2026): DFlash's block, its tokens chosen by a selector from a few candidates.

Every draft is drawn from the candidates' scores alone, so its distribution is zero at every other
token, and that is the one a draft is judged by.
"""

from collections.abc import Sequence
from typing import Any

import torch

from dspark.checkpoints.dflash2_config import DFlash2Config
from dspark.drafters.base import Chooser, Proposals
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.head_drafter import stack_present
from dspark.models.dflash2_head import DFlash2Head


class DFlash2Drafter(DSparkDrafter):
    """As DSparkDrafter, with the authors' block: the anchor's row drafts nothing."""

    module = DFlash2Head
    config: DFlash2Config

    def _count_weights(self, num_columns: int) -> int:
        config = self.config
        backbone = (p.numel() for n, p in self._head.named_parameters() if "codebook" not in n)
        rows = config.block_size * (1 + config.selector_top_k)
        columns = num_columns * config.hidden_size
        return int(sum(backbone) + columns + rows * config.selector_rank)

    def _block_inputs(self, anchors: torch.Tensor) -> torch.Tensor:
        return super()._block_inputs(anchors) * self.config.input_embedding_scale

    def _choose_left_to_right(
        self, hidden: torch.Tensor, owns: Sequence[Any], anchors: torch.Tensor, chooser: Chooser
    ) -> Proposals:
        """As DSparkDrafter's, among the likeliest tokens of each position."""
        selector = self._head.candidate_selector
        unary, candidates = self._candidates(hidden, owns)
        projected = selector.hidden_projection(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)
        previous, ids, probs = anchors, [], []
        for k in range(self.block_size):
            known = candidates[:, k]
            scores = selector.scores(unary[:, k], known, projected[:, k], previous)
            picked, chosen_probs = chooser.choose(scores, [*known])
            previous = self._tokens_at(known, picked)
            ids.append(previous)
            probs.append(
                [
                    None if p is None else self._over_all_tokens(p, tokens)
                    for p, tokens in zip(chosen_probs, known, strict=True)
                ]
            )
        return Proposals(
            token_ids=torch.stack(ids, dim=1),
            probs=[stack_present(request_probs) for request_probs in zip(*probs, strict=True)],
            confidences=None,
        )

    def _candidates(
        self, hidden: torch.Tensor, owns: Sequence[Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden [R, K, H] -> the largest logits and their tokens, two [R, K, C]."""
        logits = self._vocabulary.logits(self._before_output(hidden), owns)
        unary, columns = logits.topk(min(self.config.selector_top_k, logits.shape[-1]), dim=-1)
        tokens = [
            each if ids is None else ids[each]
            for each, ids in zip(columns, self._vocabulary.column_ids(owns), strict=True)
        ]
        return unary, torch.stack(tokens)

    def _before_output(self, hidden: torch.Tensor) -> torch.Tensor:
        scale = self.config.output_multiplier
        return hidden if scale == 1.0 else hidden * scale

    @staticmethod
    def _tokens_at(candidates: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
        """candidates [R, C], places among them [R] -> tokens [R]."""
        return candidates.gather(1, picked.unsqueeze(1)).squeeze(1)

    def _over_all_tokens(self, probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Distribution [C] of tokens [C] -> [V], zero elsewhere."""
        return probs.new_zeros(self.config.vocab_size).index_add_(0, tokens, probs)
