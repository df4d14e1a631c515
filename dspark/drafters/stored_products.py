"""DFlash 2 and Eagle3 beside a target in stored codes: int8 copies of their linear maps on the
CPU's kernels.

Each product is a call of its own: attention, norms and choices stay PyTorch's.
"""

from typing import Any, ClassVar

import torch
from torch import nn

from dspark.checkpoints.head_config import HeadConfig
from dspark.drafters.dflash2 import DFlash2Drafter
from dspark.drafters.eagle3 import Eagle3Drafter
from dspark.drafters.head_drafter import HeadDrafter, TargetTables
from dspark.drafters.stored_head import StoredHead
from dspark_kernels.cpu.output_head import StoredOutputHead
from dspark_kernels.cpu.quantize import quantize_q8_0
from dspark_kernels.cpu.rounded import GROUP
from dspark_kernels.cpu.runtime import Runtime, current
from dspark_kernels.cpu.weight_table import WeightTable
from dspark_kernels.host_memory import give_back_freed


class _StoredProducts(StoredHead):
    @classmethod
    def supports(cls, config: Any, tables: TargetTables) -> bool:
        is_stored = isinstance(tables.embedding, WeightTable)
        return is_stored and _fits(config) and current() is not None

    def _prepack_head(self, *, is_reduced: bool) -> None:
        runtime = current()
        assert runtime is not None, "supports() asked for it"
        linear = [name for name, module in self._head.named_modules() if type(module) is nn.Linear]
        for name in linear:  # each is freed before the next is copied
            parent, _, child = name.rpartition(".")
            copy = _StoredLinear(runtime, self._head.get_submodule(name))
            setattr(self._head.get_submodule(parent), child, copy)
            give_back_freed()


class StoredDFlash2Drafter(_StoredProducts, DFlash2Drafter):
    """Codebooks stay numbers: a round reads a few rows of them."""

    of_numbers: ClassVar[type[HeadDrafter]] = DFlash2Drafter


class StoredEagle3Drafter(_StoredProducts, Eagle3Drafter):
    """A draft is one pass over the layer's copies."""

    of_numbers: ClassVar[type[HeadDrafter]] = Eagle3Drafter


class _StoredLinear(nn.Module):
    """As nn.Linear without a bias; a row has the same bits in any company."""

    def __init__(self, runtime: Runtime, linear: nn.Linear) -> None:
        super().__init__()
        self._product = StoredOutputHead(runtime, quantize_q8_0(linear.weight.detach()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._product(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return out


def stored_products(config: HeadConfig) -> list[str]:
    """The function that the head needs beside a target in codes; none if it runs in numbers."""
    return ["matrix_q8_0"] if _fits(config) else []


def _fits(config: HeadConfig) -> bool:
    widths = (config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim)
    return not config.attention_bias and all(width % GROUP == 0 for width in widths)
