"""DFlash 2 beside a target in stored codes: int8 copies of its linear maps on the CPU's kernels.

Each product is a call of its own: attention, convolutions and the selector's walk stay PyTorch's.
"""

from typing import ClassVar

import torch
from torch import nn

from dspark.checkpoints.dflash2_config import DFlash2Config
from dspark.checkpoints.model_folder import Folder
from dspark.config import DraftWeights
from dspark.drafters.dflash2 import DFlash2Drafter
from dspark.drafters.head_drafter import TargetTables
from dspark.errors import InputError
from dspark_kernels.cpu.output_head import StoredOutputHead
from dspark_kernels.cpu.quantize import quantize_q8_0
from dspark_kernels.cpu.rounded import GROUP
from dspark_kernels.cpu.runtime import Runtime, current
from dspark_kernels.cpu.weight_table import WeightTable
from dspark_kernels.host_memory import give_back_freed


class StoredDFlash2Drafter(DFlash2Drafter):
    """Codebooks stay numbers: a round reads a few rows of them."""

    takes_small_weights: ClassVar[bool] = True

    @classmethod
    def supports(cls, config: DFlash2Config, tables: TargetTables) -> bool:  # type: ignore[override]
        is_stored = isinstance(tables.embedding, WeightTable)
        return is_stored and _fits(config) and current() is not None

    @classmethod
    def load(  # type: ignore[override]  # where the head stays in numbers, the plain drafter
        cls, folder: Folder, tables: TargetTables, weights: DraftWeights
    ) -> DFlash2Drafter:
        if weights == "fp8":
            raise InputError("draft weights of fp8 need a GPU", "Leave the draft weights at auto.")
        if weights == "bf16":
            return DFlash2Drafter.load(folder, tables, weights)
        return super().load(folder, tables, weights)

    def _prepack_head(self, *, is_reduced: bool) -> None:
        runtime = current()
        assert runtime is not None, "supports() asked for it"
        for parent in list(self._head.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    setattr(parent, name, _StoredLinear(runtime, child))
                    del child
            give_back_freed()


class _StoredLinear(nn.Module):
    """As nn.Linear without a bias; a row has the same bits in any company."""

    def __init__(self, runtime: Runtime, linear: nn.Linear) -> None:
        super().__init__()
        self._product = StoredOutputHead(runtime, quantize_q8_0(linear.weight.detach()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._product(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return out


def stored_products(config: DFlash2Config) -> list[str]:
    """The function that the head needs beside a target in codes; none if it runs in numbers."""
    return ["matrix_q8_0"] if _fits(config) else []


def _fits(config: DFlash2Config) -> bool:
    widths = (config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim)
    return not config.attention_bias and all(width % GROUP == 0 for width in widths)
