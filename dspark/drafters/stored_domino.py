"""Domino beside a target in stored codes: its block and its GRU as int8 copies on the CPU's
kernels."""

from typing import Any, ClassVar

import torch
from torch import nn

from dspark.checkpoints.domino_config import DominoConfig
from dspark.drafters.domino import DominoDrafter
from dspark.drafters.head_drafter import HeadDrafter, TargetTables
from dspark.drafters.stored import StoredDSparkDrafter
from dspark.models.domino_head import PrefixGRU, gru_state
from dspark_kernels.cpu.output_head import StoredOutputHead
from dspark_kernels.cpu.quantize import quantize_q8_0
from dspark_kernels.cpu.rounded import GROUP
from dspark_kernels.cpu.runtime import Runtime, current


class StoredDominoDrafter(StoredDSparkDrafter, DominoDrafter):
    """The corrections of the logits stay numbers, as a draft vocabulary has them."""

    of_numbers: ClassVar[type[HeadDrafter]] = DominoDrafter

    @classmethod
    def supports(cls, config: DominoConfig, tables: TargetTables) -> bool:  # type: ignore[override]
        return config.gru_width % GROUP == 0 and super().supports(config, tables)

    def _prepack_head(self, *, is_reduced: bool) -> None:
        runtime = current()
        assert runtime is not None, "supports() asked for it"
        self._head.prefix_gru = _StoredGRU(runtime, self._head.prefix_gru)
        super()._prepack_head(is_reduced=is_reduced)


class _StoredGRU(nn.Module):
    """As PrefixGRU."""

    def __init__(self, runtime: Runtime, gru: PrefixGRU) -> None:
        super().__init__()
        weights: Any = (gru.weight_ih_l0, gru.weight_hh_l0)
        self._of_token, self._of_state = (
            StoredOutputHead(runtime, quantize_q8_0(weight.detach())) for weight in weights
        )

    def forward(self, embedding: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return gru_state(self._of_token(embedding), self._of_state(state), state)
