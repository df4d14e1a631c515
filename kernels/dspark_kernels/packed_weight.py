"""A CPU's copy of a float32 weight, in the order in which its matrix products read a few rows fastest.

A row's bits must not depend on how many rows are multiplied with it. MKL's copy keeps that where its
products of one row add as those of sixteen do: on Intel's processors. Elsewhere oneDNN's copy does, from
two rows on, and is the faster one there (docs/log.md). Either doubles the memory.
"""

from collections.abc import Callable
from functools import cache, partial

import torch

MKL_ROWS = 16  # MKL's copy serves every row count up to the one it was made for
ONEDNN_ROWS = 16  # oneDNN's serves any; made for 16 it is as good as the best from 1 to 64

PackedProduct = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def pack_weight(weight: torch.Tensor) -> PackedProduct | None:
    """x [M, K], bias -> x weight^T + bias, for weight [N, K]; None where torch has no such copy."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not _has_mkl():
        return None
    if mkl_adds_in_one_order():
        return _mkl_product(weight)
    return _onednn_product(weight) if torch.backends.mkldnn.is_available() else None


@cache
def mkl_adds_in_one_order() -> bool:
    """Whether on this processor a row has the same bits among 1 to 16 rows."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, 576, generator=generator) for n in (192, MKL_ROWS))
    multiply = _mkl_product(weight)
    whole = multiply(x, None)
    return all(torch.equal(multiply(x[:n], None), whole[:n]) for n in range(1, MKL_ROWS))


def _has_mkl() -> bool:
    """x86, then; what other processors' products do is not known."""
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


def _mkl_product(weight: torch.Tensor) -> PackedProduct:
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), MKL_ROWS)
    return partial(_multiply_by_mkl, weight, packed)


def _multiply_by_mkl(
    weight: torch.Tensor, packed: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    multiply = torch.ops.mkl._mkl_linear
    parts = [multiply(part, packed, weight, bias, part.shape[0]) for part in x.split(MKL_ROWS)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _onednn_product(weight: torch.Tensor) -> PackedProduct:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ONEDNN_ROWS)
    return partial(_multiply_by_onednn, packed)


def _multiply_by_onednn(
    packed: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    is_alone = x.shape[0] == 1  # one row of over 1,024 numbers would be added in another order
    rows = torch.cat([x, x]) if is_alone else x
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return out[:1] if is_alone else out
