"""A stored weight read by rows, as an embedding is: as much of a tensor as that takes."""

from collections.abc import Iterator

import torch

from dspark_kernels.cpu.embed import embed
from dspark_kernels.cpu.file_weight import FileTable
from dspark_kernels.cpu.stored_weight import StoredWeight


class WeightTable:
    """Indexed by tokens, it gives float32 rows, exactly as they are stored."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, weight: StoredWeight) -> None:
        self.stored = weight
        self.shape = torch.Size(weight.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: torch.Tensor | int) -> torch.Tensor:
        """ids int64 [...] -> [..., K]."""
        ids = torch.as_tensor(ids)
        return embed(self.stored, ids.flatten().contiguous()).view(*ids.shape, self.shape[1])

    def split(self, num_rows: int) -> Iterator[torch.Tensor]:
        """All rows, so many at a time."""
        for start in range(0, len(self), num_rows):
            yield self[torch.arange(start, min(start + num_rows, len(self)))]

    def new_zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape)


Table = torch.Tensor | WeightTable | FileTable
