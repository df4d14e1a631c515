"""DFlash 2 for Triton: its layers over pages, convolutions between them, the candidates' scores as
one operation."""

from dataclasses import replace
from typing import Any, ClassVar

import torch

from dspark.config import DraftWeights
from dspark.drafters.dflash2 import DFlash2Drafter
from dspark.drafters.paged import PagedDSparkDrafter, fuse, stored_as
from dspark.models.decoder import FusedLayer
from dspark.models.dflash2_head import BlockConvolution
from dspark_kernels import BlockFilter, CandidateHead, DraftedBlock, SkinnyLinear, candidate_block


class PagedDFlash2Drafter(PagedDSparkDrafter, DFlash2Drafter):
    """Drafts are drawn by temperature alone: a request's top-k and top-p are the target's."""

    takes_small_weights: ClassVar[bool] = True

    def _fused(self, layer: Any, weights: DraftWeights) -> FusedLayer:
        return replace(
            fuse(layer, weights),
            attention_filter=_filter(layer.attention_conv, weights),
            mlp_filter=_filter(layer.mlp_conv, weights),
        )

    def _prepare_choices(self, weights: DraftWeights) -> None:
        selector = self._head.candidate_selector
        self.embedding_scale = self.config.input_embedding_scale
        self._selector = CandidateHead(
            selector.hidden_projection.weight.detach(),
            selector.predecessor_codebook.detach(),
            selector.successor_codebook.detach(),
            self.config.selector_top_k,
        )

    def _before_output(self, hidden: torch.Tensor) -> torch.Tensor:
        return DFlash2Drafter._before_output(self, hidden)

    def _chosen(
        self,
        logits: torch.Tensor,
        hidden: torch.Tensor,
        anchors: torch.Tensor,
        temperatures: torch.Tensor,
        seeds: torch.Tensor,
        positions: torch.Tensor,
    ) -> DraftedBlock:
        drawn = (temperatures, seeds, positions)
        return candidate_block(logits, hidden, anchors, self._selector, *drawn)


def _filter(convolution: BlockConvolution, weights: DraftWeights) -> BlockFilter:
    weight = stored_as(convolution.kernel_projection.weight, weights)
    projection = SkinnyLinear(weight, prepack=False)
    return BlockFilter(convolution.base_kernel.detach(), projection, convolution.rows)
