"""Arithmetic whose bits for one row do not depend on the rows beside it.

torch adds in an order that depends on the shape of the whole, and computes exp with other
instructions at the end of a tensor than in its middle. Sums, differences, products and quotients
of elements do not.
"""

from collections.abc import Callable

import torch

from dspark_kernels.cpu.exact import sqrt


def ordered_sum(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """x summed along `dim`, which stays with size 1: halves added to halves."""
    while (size := x.shape[dim]) > 1:
        half = size // 2
        added = x.narrow(dim, 0, half) + x.narrow(dim, half, half)
        x = torch.cat([added, x.narrow(dim, size - 1, 1)], dim) if size % 2 else added
    return x


def unit(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., D] divided by its root mean square."""
    mean = ordered_sum(x * x) / x.shape[-1]
    return x * (1.0 / sqrt(mean + eps))


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of x [..., D]."""
    return unit(x, eps) * weight


def by_rows(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """`function` of each row of x [N, ...] alone."""
    if x.device.type != "cpu" or len(x) == 0:
        return function(x)
    return torch.stack([function(row) for row in x.contiguous()])
