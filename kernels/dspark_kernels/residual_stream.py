"""The residual stream of a decoder between the products that add to it and the norms that read it.

Where a product is a kernel, the addition is part of it. Elsewhere the next norm adds.
"""

from dataclasses import dataclass

import torch

from dspark_kernels.norm import add_rms_norm, rms_norm
from dspark_kernels.quantized_weight import QuantizedWeight
from dspark_kernels.skinny_linear import launch, skinny_linear, takes_kernel


@dataclass(frozen=True, slots=True)
class ResidualStream:
    """total [N, H]; update [N, H] is yet to be added to it, by the next norm."""

    total: torch.Tensor
    update: torch.Tensor | None = None

    def normed(
        self, weight: torch.Tensor, eps: float, tap: torch.Tensor | None = None
    ) -> "tuple[torch.Tensor, ResidualStream]":
        """RMSNorm of the sum, weight [H] -> [N, H], and the stream with nothing left to add; `tap`
        [N, H] receives the sum too."""
        if self.update is None:
            return rms_norm(self.total, weight, eps, tap), self
        normed, total = add_rms_norm(self.update, self.total, weight, eps, tap)
        return normed, ResidualStream(total)

    def plus_linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | QuantizedWeight,
        bias: torch.Tensor | None = None,
    ) -> "ResidualStream":
        """The stream plus skinny_linear(x [N, K], weight [H, K], bias [H])."""
        assert self.update is None
        if takes_kernel(x, weight):
            return ResidualStream(launch(x, weight, bias, residual=self.total))
        return ResidualStream(self.total, skinny_linear(x, weight, bias))
