"""A CPU's copy of a float32 weight, in the order that is read fastest for few rows.

A row's bits must not depend on how many rows are multiplied with it. MKL's copy keeps that on
Intel's processors, oneDNN's on AMD's, and each is the faster one there (docs/log.md). Which it is
here is tried, not looked up. Either doubles the memory.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F

PACKED_ROWS = 16  # MKL's copy serves no more at once; oneDNN's, made for as many, serves any number
MAX_MKL_ROWS = 64

PackedProduct = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def pack_weight(weight: torch.Tensor) -> PackedProduct | None:
    """x [M, K], bias -> x weight^T + bias, for weight [N, K]; None where torch has no such copy."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not _is_available():
        return None
    width = weight.shape[1]
    if adds_in_one_order(_by_mkl, width):
        return _by_mkl(weight)
    product = _by_onednn(weight)
    return product if adds_in_one_order(_by_onednn, width) else partial(_never_alone, product)


@cache
def adds_in_one_order(pack: Callable[[torch.Tensor], PackedProduct], width: int) -> bool:
    """Whether a row of `width` numbers comes out the same to the bit among 1 to 16 rows."""
    generator = torch.Generator().manual_seed(0)
    product = pack(torch.randn(64, width, generator=generator))
    x = torch.randn(PACKED_ROWS, width, generator=generator)
    whole = product(x, None)
    parts = [product(x[:n], None) for n in range(1, PACKED_ROWS)]
    return all(torch.equal(part, whole[: len(part)]) for part in parts)


def _is_available() -> bool:
    """On x86 alone: how the products of other processors add was not tried."""
    return bool(torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available())


def _by_mkl(weight: torch.Tensor) -> PackedProduct:
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), PACKED_ROWS)
    linear = torch.ops.mkl._mkl_linear

    def product(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if len(x) > MAX_MKL_ROWS:
            return F.linear(x, weight, bias)
        parts = [linear(rows, packed, weight, bias, len(rows)) for rows in x.split(PACKED_ROWS)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return product


def _by_onednn(weight: torch.Tensor) -> PackedProduct:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_ROWS)
    linear = torch.ops.mkldnn._linear_pointwise

    def product(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        out: torch.Tensor = linear(x, packed, bias, "none", [], "")
        return out

    return product


def _never_alone(
    product: PackedProduct, x: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """oneDNN adds one row of over 1,024 numbers in an order of its own; two cost as much."""
    return product(torch.cat([x, x]), bias)[:1] if len(x) == 1 else product(x, bias)
