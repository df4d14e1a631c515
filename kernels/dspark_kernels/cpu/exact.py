"""Float32 arithmetic in torch that rounds as a processor's instruction does."""

import torch


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a b + c, rounded once to float32; the shapes broadcast.

    The product is exact in float64. Its sum is rounded to odd there, which a second rounding to
    half the bits cannot tell from the exact value.
    """
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.contiguous().view(torch.int64)
    toward = torch.where((error > 0) == (total > 0), 1, -1)
    is_inexact = (error != 0) & total.isfinite() & (bits & 1 == 0)
    bits = torch.where(is_inexact, bits + toward, bits)
    return bits.view(torch.float64).float()


def sqrt(x: torch.Tensor) -> torch.Tensor:
    """x [...] float32 -> its square root, rounded once; torch's is one bit off now and then
    (MKL's)."""
    return x.double().sqrt().float()
