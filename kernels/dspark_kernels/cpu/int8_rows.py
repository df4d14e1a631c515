"""Rows rounded to 8 bits in groups of 32 by a power of two, in the order in which FP4 is read.

A group's scale is the smallest 2^e for which its largest magnitude is at most 127 · 2^e, taken from
the bits; codes are rounded to nearest even. A group whose largest is below 2**-100 is zero; one
with a NaN or an infinity becomes NaN. Of eight columns the even ones come first, as a quad, then
the odd ones: those are the low and the high halves of a stored word of FP4.
"""

from dataclasses import dataclass

import torch

from dspark_kernels.cpu.runtime import Op, current

GROUP = 32
RECORD = GROUP + 8  # bytes: codes, then the fields of Int8Rows
LARGEST = 127
LARGEST_MANTISSA = 0x7E0000  # of 127 · 2^e, in the bits of a float
SMALLEST_BITS = 27 << 23  # of 2**-100
OFFSET = 12  # what stored codes are above twice their value
BIAS = 127  # of a float's exponent
STEPS_OF_LARGEST = 6  # 127 · 2^e has the exponent e + 6


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """data uint8 [N, K / 32, 40]: int8 [32] codes, float32 half the scale, int32 -12 times the sum
    of the codes."""

    data: torch.Tensor

    @property
    def width(self) -> int:
        return self.data.shape[1] * GROUP

    def __len__(self) -> int:
        return self.data.shape[0]

    def codes(self) -> torch.Tensor:
        """int8 [N, K], in the order of the columns."""
        stored = self.data[:, :, :GROUP].contiguous().view(torch.int8)
        by_parity = stored.unflatten(2, (-1, 2, 4))
        out: torch.Tensor = by_parity.transpose(3, 4).flatten(1)
        return out

    def half_scales(self) -> torch.Tensor:
        """float32 [N, K / 32]."""
        return self.data[:, :, GROUP : GROUP + 4].contiguous().view(torch.float32).squeeze(-1)

    def values(self) -> torch.Tensor:
        """float32 [N, K]: the rounded values."""
        grouped = self.codes().unflatten(1, (-1, GROUP)).float()
        out: torch.Tensor = (grouped * 2.0 * self.half_scales().unsqueeze(-1)).flatten(1)
        return out


def empty_int8(num_rows: int, width: int) -> Int8Rows:
    """Raises ValueError if the width is not a multiple of the group."""
    if width <= 0 or width % GROUP:
        raise ValueError(f"rows of {width} numbers are not groups of {GROUP}")
    return Int8Rows(torch.empty(num_rows, width // GROUP, RECORD, dtype=torch.uint8))


def round_int8(x: torch.Tensor) -> Int8Rows:
    """x float32 [N, K], K a multiple of 32."""
    runtime = current()
    if runtime is None:
        return round_int8_reference(x)
    x, out = x.contiguous(), empty_int8(*x.shape)
    if len(x):
        words = (x, out.data)
        runtime.run([Op("round_int8", 0, x.shape[1] // GROUP, words, fewest=8)], len(x))
    return out


def round_int8_reference(x: torch.Tensor) -> Int8Rows:
    """As round_int8, in torch."""
    out = empty_int8(*x.shape)
    grouped = x.contiguous().unflatten(1, (-1, GROUP))
    # of the bits: they are ordered as the magnitudes are, and a NaN is above all
    bits = (grouped.view(torch.int32) & 0x7FFFFFFF).amax(-1)
    largest = bits.view(torch.float32)
    exponent = (bits >> 23) - STEPS_OF_LARGEST + (bits & 0x7FFFFF > LARGEST_MANTISSA).int()
    is_small = bits < SMALLEST_BITS  # `exponent` still has its bias
    half = torch.where(is_small, 0.0, (exponent - 1 << 23).view(torch.float32))
    half = half + (largest - largest)  # NaN of a group that has no largest
    inverse = torch.where(is_small, 0.0, (2 * BIAS - exponent << 23).view(torch.float32))
    codes = (grouped * inverse.unsqueeze(-1)).round().nan_to_num(0.0, 0.0, 0.0).to(torch.int8)
    sums = -OFFSET * codes.sum(-1, dtype=torch.int32)
    stored = codes.unflatten(2, (-1, 4, 2)).transpose(3, 4).flatten(2)
    out.data[:, :, :GROUP] = stored.contiguous().view(torch.uint8)
    for start, field in ((GROUP, half), (GROUP + 4, sums)):
        out.data[:, :, start : start + 4] = field.unsqueeze(-1).contiguous().view(torch.uint8)
    return out
