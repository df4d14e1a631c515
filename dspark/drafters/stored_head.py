"""A head beside a target in stored codes, its linear maps as int8 copies on the CPU's kernels."""

from typing import Any, ClassVar

import torch

from dspark.checkpoints.model_folder import Folder
from dspark.config import DraftWeights
from dspark.drafters.head_drafter import HeadDrafter, TargetTables
from dspark.errors import InputError


class StoredHead(HeadDrafter):
    """`of_numbers` runs the same head without copies."""

    takes_small_weights: ClassVar[bool] = True
    of_numbers: ClassVar[type[HeadDrafter]]

    @classmethod
    def load(cls, folder: Folder, tables: TargetTables, weights: DraftWeights) -> Any:
        """As HeadDrafter.load; for bf16 a drafter of `of_numbers`. Raises InputError for fp8."""
        if weights == "fp8":
            raise InputError("draft weights of fp8 need a GPU", "Leave the draft weights at auto.")
        if weights == "bf16":
            return cls.of_numbers.load(folder, tables, weights)
        return super().load(folder, tables, weights)

    def _placed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What becomes an int8 copy stays as the file has it until then."""
        is_copied = tensor.dim() == 2 and name.startswith(("layers.", "fc."))
        return tensor if is_copied else super()._placed(name, tensor)
