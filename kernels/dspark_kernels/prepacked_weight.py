"""A CPU's form of a float32 weight, in the order that is read fastest; the plain one can go.

A row's bits must not depend on how many rows are multiplied with it. MKL's form keeps that on
Intel's processors, oneDNN's on AMD's, and each is the faster one there (docs/log.md). Which it is
here is tried, not looked up. Either takes as much memory as the weight.
"""

from collections.abc import Callable
from functools import cache, partial

import torch

PREPACKED_ROWS = 16  # oneDNN's form is quickest when made for few; it serves any number
PROMPT_ROWS = 256  # MKL's form is made for a prompt's chunk; a block's few rows are as fast
MAX_ROWS = 64  # of a decoding pass

PrepackedProduct = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def prepack_weight(weight: torch.Tensor) -> PrepackedProduct | None:
    """x [M, K], bias -> x weight^T + bias, for weight [N, K]; None if torch has no such form.

    The product holds no reference to `weight`.
    """
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not _is_available():
        return None
    width = weight.shape[1]
    for pack in (_by_mkl, _by_mkl_in_parts, _by_onednn):
        if adds_in_one_order(pack, width):
            return pack(weight)
    return partial(_never_alone, _by_onednn(weight))


@cache
def adds_in_one_order(pack: Callable[[torch.Tensor], PrepackedProduct], width: int) -> bool:
    """Whether a row of `width` numbers comes out the same to the bit among 1 to 64 rows."""
    generator = torch.Generator().manual_seed(0)
    product = pack(torch.randn(64, width, generator=generator))
    x = torch.randn(MAX_ROWS, width, generator=generator)
    whole = product(x, None)
    products = [product(x[:n], None) for n in range(1, MAX_ROWS)]
    return all(torch.equal(part, whole[: len(part)]) for part in products)


def _is_available() -> bool:
    """On x86 alone: how the products of other processors add was not tried."""
    return bool(torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available())


def _by_mkl(weight: torch.Tensor) -> PrepackedProduct:
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), PROMPT_ROWS)
    linear = torch.ops.mkl._mkl_linear
    sizes = weight.new_empty(1).expand(
        weight.shape
    )  # the only part of the plain weight that is read

    def product(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        # given the true number of rows, it never falls back to the weight
        out: torch.Tensor = linear(x, packed, sizes, bias, len(x))
        return out

    return product


def _by_mkl_in_parts(weight: torch.Tensor) -> PrepackedProduct:
    product = _by_mkl(weight)

    def in_parts(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if not PREPACKED_ROWS < len(x) <= MAX_ROWS:
            return product(x, bias)
        return torch.cat([product(rows, bias) for rows in x.split(PREPACKED_ROWS)])

    return in_parts


def _by_onednn(weight: torch.Tensor) -> PrepackedProduct:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PREPACKED_ROWS)
    linear = torch.ops.mkldnn._linear_pointwise

    def product(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        out: torch.Tensor = linear(x, packed, bias, "none", [], "")
        return out

    return product


def _never_alone(
    product: PrepackedProduct, x: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """oneDNN sums a single row of over 1,024 numbers in another order; two rows cost the same."""
    return product(torch.cat([x, x]), bias)[:1] if len(x) == 1 else product(x, bias)
