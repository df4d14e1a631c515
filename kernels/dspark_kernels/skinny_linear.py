"""A linear layer for the few rows of a decoding step.

On an x86 CPU in float32, torch's own matmul takes 2.4 times as long for 8 rows as for one, although
both read the same weights. MKL's pre-packed form takes 1.45 times as long (docs/log.md), and its
order of summation does not depend on the number of rows. The packed copy doubles the memory.
"""

import torch
import torch.nn.functional as F

MAX_PACKED_ROWS = 16  # one pack serves every row count up to the one it was made for


def can_pack(weight: torch.Tensor) -> bool:
    """Whether this build and this weight allow the packed path."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkl.is_available()
        and hasattr(torch.ops.mkl, "_mkl_linear")
    )


class SkinnyLinear:
    """y = x W^T + b for x [N, in], weight [out, in]; fast for N <= 16 where packing is possible."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, pack: bool = True
    ) -> None:
        self.weight = weight
        self.bias = bias
        self._packed: torch.Tensor | None = None
        if pack and can_pack(weight):
            reorder = torch.ops.mkl._mkl_reorder_linear_weight
            self._packed = reorder(weight.contiguous(), MAX_PACKED_ROWS)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        num_rows = x.shape[0]
        if self._packed is None or num_rows > MAX_PACKED_ROWS:
            return F.linear(x, self.weight, self.bias)
        out: torch.Tensor = torch.ops.mkl._mkl_linear(
            x, self._packed, self.weight, self.bias, num_rows
        )
        return out
