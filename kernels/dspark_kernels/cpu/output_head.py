"""Rows times a stored output head, to logits."""

import torch

from dspark_kernels.cpu.matrix import OUT_WORD, multiply_op
from dspark_kernels.cpu.rounded import GROUP, empty_rounded
from dspark_kernels.cpu.runtime import Op, Program, Runtime
from dspark_kernels.cpu.stored_weight import LANES, StoredWeight, pack
from dspark_kernels.cpu.weight_table import WeightTable

MAX_ROWS = 64


class StoredOutputHead:
    """hidden [N, H] -> logits [N, V], of any number of rows; `weight` is its table [V, H]."""

    def __init__(self, runtime: Runtime, weight: StoredWeight) -> None:
        self.weight, self._runtime = WeightTable(weight), runtime
        self._hidden = torch.zeros(MAX_ROWS, weight.width)
        rounded = empty_rounded(MAX_ROWS, weight.width).data
        self._columns = weight.num_blocks * LANES
        ops = [
            Op("round_rows", 0, 1, (self._hidden, rounded, weight.width // GROUP)),
            multiply_op(weight, None, rounded, torch.empty(1, self._columns)),
        ]
        self._program = Program(runtime, ops)

    def of(self, outputs: torch.Tensor) -> "StoredOutputHead":
        """Of these outputs [N] alone, in the codes that they have."""
        stored = self.weight.stored
        return StoredOutputHead(self._runtime, pack(stored.kind, stored.parts(outputs)))

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        parts = [self._few(rows) for rows in hidden.split(MAX_ROWS)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _few(self, hidden: torch.Tensor) -> torch.Tensor:
        num_rows = len(hidden)
        self._hidden[:num_rows] = hidden
        logits = torch.empty(num_rows, self._columns)
        self._program.point(1, OUT_WORD, logits)
        self._program(torch.tensor([num_rows]))
        return logits[:, : len(self.weight)]
