"""FP4 weights in the bytes of their file times rows of 8 bits; many weights in one call.

Sums of a group's products are whole numbers, exact in any order. Then, group after group:
out = fma(sum, weight's scale · half the row's scale, out). Scales are powers of two, so each group
rounds once: the same bits for every number of rows, of threads, and on every processor.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from dspark_kernels.cpu.exact import fma
from dspark_kernels.cpu.file_weight import FileWeight
from dspark_kernels.cpu.int8_rows import GROUP, Int8Rows
from dspark_kernels.cpu.runtime import Op, current

TILE = 16  # outputs
SEGMENT_WORDS = 5  # of the kernel's table: codes, scales, row numbers, how many, out


class Segment(NamedTuple):
    """One weight [N, K], the numbers int64 [m] of the rows that meet it, and where in float32
    [m, N] the products go; its rows may be further apart."""

    weight: FileWeight
    rows: torch.Tensor
    out: torch.Tensor


def multiply_mxfp4(x: Int8Rows, weight: FileWeight) -> torch.Tensor:
    """x [M, K], weight [N, K] -> float32 [M, N]."""
    out = torch.empty(len(x), weight.shape[0])
    multiply_segments(x, [Segment(weight, torch.arange(len(x)), out)])
    return out


def multiply_segments(x: Int8Rows, segments: Sequence[Segment]) -> None:
    """Fills `out` of every segment; weights are of one shape, outs of one distance of rows."""
    runtime = current()
    if runtime is None:
        for segment in segments:
            multiply_segment_reference(x, segment)
        return
    if segments:
        table = segment_table(segments)
        runtime.run([mxfp4_op(x, segments, table)], 0)


def segment_table(segments: Sequence[Segment]) -> torch.Tensor:
    """int64 [segments, words], as the kernel reads it. Raises ValueError for shapes that differ."""
    first = segments[0]
    for weight, rows, out in segments:
        if weight.shape != first.weight.shape or weight.kind != "fp4" or weight.shape[0] % TILE:
            raise ValueError(f"segments of {weight.kind} {list(weight.shape)}")
        if out.shape != (len(rows), weight.shape[0]) or out.stride(0) != first.out.stride(0):
            raise ValueError(f"products {list(out.shape)} of {len(rows)} rows")
    return torch.tensor([_words(each) for each in segments])


def mxfp4_op(x: Int8Rows, segments: Sequence[Segment], table: torch.Tensor) -> Op:
    """`table` is theirs, and kept by the caller with all that it points to."""
    first = segments[0]
    if x.width != first.weight.shape[1]:
        raise ValueError(f"rows of {x.width} numbers meet {first.weight.shape[1]} inputs")
    tiles = first.weight.shape[0] // TILE
    words = (table, x.data, x.width // GROUP, tiles, 4 * first.out.stride(0))
    return Op("mxfp4", len(segments) * tiles, 0, words)


def multiply_segment_reference(x: Int8Rows, segment: Segment) -> None:
    """As multiply_segments, in torch."""
    weight, codes = segment.weight, x.codes()[segment.rows].double()
    twice = (2 * weight.values()).double()
    scales, halves = weight.factors(), x.half_scales()[segment.rows]
    out = torch.zeros(len(codes), weight.shape[0])
    for group in range(x.width // GROUP):
        columns = slice(group * GROUP, (group + 1) * GROUP)
        sums = (codes[:, columns] @ twice[:, columns].t()).float()
        out = fma(sums, scales[:, group] * halves[:, group, None], out)
    segment.out.copy_(out)


def _words(segment: Segment) -> list[int]:
    weight, rows, out = segment
    assert weight.scales is not None
    return [
        weight.codes.data_ptr(),
        weight.scales.data_ptr(),
        rows.data_ptr(),
        len(rows),
        out.data_ptr(),
    ]
