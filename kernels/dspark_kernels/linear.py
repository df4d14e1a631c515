"""A linear layer for the few rows of a decoding step, on a GPU or on a CPU.

On an x86 CPU in float32, torch's own matmul takes 2.4 times as long for 8 rows as for one, although
both read the same weights; a packed form takes 1.45 times as long or less (docs/log.md).
"""

from collections.abc import Callable
from typing import Any

import torch

from dspark_kernels.prepacked_weight import PrepackedProduct, prepack_weight
from dspark_kernels.quantized_weight import QuantizedWeight
from dspark_kernels.residual_stream import ResidualStream
from dspark_kernels.skinny_linear import skinny_linear
from dspark_kernels.swiglu import swiglu


class SkinnyLinear:
    """y = x W^T + b for x [N, in], weight [out, in]; fast for few rows."""

    def __init__(
        self,
        weight: torch.Tensor | QuantizedWeight,
        bias: torch.Tensor | None = None,
        *,
        prepack: bool = True,
        is_shared: bool = False,
    ) -> None:
        """`is_shared`: others read the weight too; otherwise it is freed if a prepacked form
        serves."""
        self.bias = bias
        self._prepacked: PrepackedProduct | None = None
        if prepack and isinstance(weight, torch.Tensor):
            self._prepacked = prepack_weight(weight)
        self.weight: Any = weight if is_shared or self._prepacked is None else None

    def rows(self, begin: int) -> "SkinnyLinear | None":
        """The product of the weight's rows from `begin` on, of the same memory; None where the
        weight's format cannot be cut there. It must not be prepacked."""
        assert self._prepacked is None
        weight = self.weight
        if isinstance(weight, QuantizedWeight) and begin % weight.rows_per_scale:
            return None
        rows = weight.rows(begin) if isinstance(weight, QuantizedWeight) else weight[begin:]
        return SkinnyLinear(rows, None if self.bias is None else self.bias[begin:], prepack=False)

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "SkinnyLinear":
        """The same product of other tensors, which is not prepacked."""
        assert self._prepacked is None
        weight = self.weight
        weight = weight.moved(move) if isinstance(weight, QuantizedWeight) else move(weight)
        return SkinnyLinear(weight, None if self.bias is None else move(self.bias), prepack=False)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._prepacked is None:
            return skinny_linear(x, self.weight, self.bias)
        return self._prepacked(x, self.bias)

    def gated(self, x: torch.Tensor) -> torch.Tensor:
        """Of gate rows above up rows: SwiGLU of the product."""
        if self._prepacked is not None:
            return swiglu(self(x))
        return skinny_linear(x, self.weight, self.bias, gated=True)

    def onto(self, stream: ResidualStream, x: torch.Tensor) -> ResidualStream:
        """The stream with the product of x added."""
        if self._prepacked is None:
            return stream.plus_linear(x, self.weight, self.bias)
        return ResidualStream(stream.total, self(x))
