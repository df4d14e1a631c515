"""What is read by rows, as an embedding is, without being a tensor: as much as that takes."""

from collections.abc import Iterator

import torch


class RowTable:
    """Indexed by tokens, it gives float32 rows, exactly as they are stored."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = torch.Size(shape)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """ids int64 [n], contiguous -> float32 [n, K]."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: torch.Tensor | int) -> torch.Tensor:
        """ids int64 [...] -> [..., K]."""
        ids = torch.as_tensor(ids)
        return self.rows(ids.flatten().contiguous()).view(*ids.shape, self.shape[1])

    def split(self, num_rows: int) -> Iterator[torch.Tensor]:
        """All rows, so many at a time."""
        for start in range(0, len(self), num_rows):
            yield self[torch.arange(start, min(start + num_rows, len(self)))]

    def new_zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape)
