"""Domino for Triton: DFlash's layers over pages, the GRU's steps on the device."""

from typing import ClassVar

import torch

from dspark.config import DraftWeights
from dspark.drafters.domino import DominoDrafter
from dspark.drafters.paged import PagedDSparkDrafter, stored_as
from dspark_kernels import DraftedBlock, GruHead, gru_block
from dspark_kernels.quantized_weight import quantize_int8


class PagedDominoDrafter(PagedDSparkDrafter, DominoDrafter):
    """As PagedDSparkDrafter; smaller copies are made of the GRU and the projector too."""

    takes_small_weights: ClassVar[bool] = True

    def _prepare_choices(self, weights: DraftWeights) -> None:
        head, width = self._head, self.config.hidden_size
        inner, outer = head.embed_proj[0].weight.detach(), head.embed_proj[2].weight.detach()
        assert isinstance(self._embedding, torch.Tensor), "a target with pages holds numbers"
        self._gru = GruHead(
            embedding=self._embedding,
            of_token=stored_as(head.prefix_gru.weight_ih_l0, weights),
            of_state=stored_as(head.prefix_gru.weight_hh_l0, weights),
            projector_of_hidden=stored_as(inner[:, :width].contiguous(), weights),
            projector_of_state=stored_as(inner[:, width:].contiguous(), weights),
            w2=quantize_int8(outer) if weights == "int8" else outer,
            prefix_length=self.config.prefix_length,
        )

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
        return gru_block(logits, hidden, anchors, self._gru, *drawn)
