"""A stored weight read by rows."""

import torch

from dspark_kernels.cpu.embed import embed
from dspark_kernels.cpu.file_weight import FileTable
from dspark_kernels.cpu.row_table import RowTable
from dspark_kernels.cpu.stored_weight import StoredWeight


class WeightTable(RowTable):
    """Of codes."""

    def __init__(self, weight: StoredWeight) -> None:
        super().__init__(weight.shape)
        self.stored = weight

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """As RowTable.rows."""
        return embed(self.stored, ids)


Table = torch.Tensor | WeightTable | FileTable
