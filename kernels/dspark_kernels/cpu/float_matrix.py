"""Rows of float32 times weights in the bytes of their file, without rounding either.

The order of a sum is part of the result. Lane i of 16 adds the columns i, i + 16, ... of a block,
each by fma, then the block by fma with its scale; the lanes are added as a tree. So a row is
bit-identical whatever else is in the batch, for every number of threads and every processor.
"""

import torch

from dspark_kernels.cpu.exact import fma
from dspark_kernels.cpu.file_weight import PACKINGS, FileWeight
from dspark_kernels.cpu.float_text import LANES, tree_sum
from dspark_kernels.cpu.runtime import Op, current

OUTPUTS = 4  # of a unit of work
SHARES = 256  # units in which the weights of many segments are shared out


def multiply_floats(x: torch.Tensor, weight: FileWeight) -> torch.Tensor:
    """x float32 [M, K], rows may be further apart; -> float32 [M, N]."""
    check_floats(x, weight)
    runtime = current()
    if runtime is None:
        return multiply_floats_reference(x, weight)
    if x.stride(1) != 1:
        x = x.contiguous()
    out = torch.empty(len(x), weight.shape[0])
    if len(x):
        runtime.run([multiply_floats_op(x, weight, out)], len(x))
    return out


def multiply_floats_op(x: torch.Tensor, weight: FileWeight, out: torch.Tensor) -> Op:
    """out float32 [M, N], rows may be further apart."""
    scales: torch.Tensor | int = 0 if weight.scales is None else weight.scales
    words: tuple[torch.Tensor | int, ...] = (x, 4 * x.stride(0), out, 4 * out.stride(0))
    words += (weight.codes, weight.codes.stride(0), scales, *_sizes(weight))
    return Op(f"floats_{weight.kind}", -(-weight.shape[0] // OUTPUTS), 0, words)


def counted_floats_op(
    x: torch.Tensor,
    like: FileWeight,
    table: torch.Tensor,
    counts: tuple[torch.Tensor, int],
    out_bytes: int,
) -> Op:
    """Rows times weights of one shape as segments of `table`, as mxfp4's: of `counts`, how many
    times how many. Products are `out_bytes` apart from row to row."""
    words: tuple[torch.Tensor | int, ...] = (x, 4 * x.stride(0), table, out_bytes)
    words += (counts[0], like.codes.stride(0), counts[1], *_sizes(like))
    return Op(f"floats_counted_{like.kind}", SHARES, 0, words)


def _sizes(weight: FileWeight) -> tuple[int, ...]:
    """Bytes of a row of scales, rows of a block, blocks of a row, chunks of a block, outputs."""
    (num_outputs, num_columns), scales = weight.shape, weight.scales
    width = weight.width or num_columns
    scale_bytes = 0 if scales is None else scales.stride(0) * scales.itemsize
    return scale_bytes, weight.height, num_columns // width, width // LANES, num_outputs


def multiply_floats_reference(x: torch.Tensor, weight: FileWeight) -> torch.Tensor:
    """As multiply_floats, in torch."""
    check_floats(x, weight)
    num_outputs, num_columns = weight.shape
    width, exponent = weight.width or num_columns, PACKINGS[weight.kind].exponent
    codes = (weight.values() * 2.0**-exponent).view(num_outputs, -1, width // LANES, LANES)
    columns = x.reshape(len(x), 1, -1, width // LANES, LANES)
    blocks = torch.zeros(len(x), num_outputs, codes.shape[1], LANES)
    for chunk in range(width // LANES):
        blocks = fma(codes[:, :, chunk], columns[:, :, :, chunk], blocks)
    if weight.scales is None:
        return tree_sum(blocks[:, :, 0])
    factors = weight.factors().repeat_interleave(weight.height, dim=0)[:num_outputs]
    total = torch.zeros(len(x), num_outputs, LANES)
    for block in range(codes.shape[1]):
        total = fma(blocks[:, :, block] * 2.0**exponent, factors[:, block, None], total)
    return tree_sum(total)


def check_floats(x: torch.Tensor, weight: FileWeight) -> None:
    """Raises ValueError for shapes that do not meet, or are not in whole blocks."""
    num_columns = weight.shape[1]
    width = weight.width or num_columns
    if x.shape[1] != num_columns or x.dtype != torch.float32:
        raise ValueError(f"rows {list(x.shape)} of {x.dtype} meet {num_columns} inputs")
    if num_columns % width or width % LANES:
        raise ValueError(f"{num_columns} inputs in blocks of {width} are not blocks of {LANES}")
