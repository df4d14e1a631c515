"""Rows rounded to 16 bits in groups of 32, in the order in which the matrices read them.

A code is 256 · first + second, two signed bytes, so that matrices multiply bytes alone. The first
is x · (127 / largest magnitude) to nearest even, the second what that leaves over in 256ths, at
most 127, to nearest even; scale = largest / 127 / 256. A group whose largest is below 2**-100 is
zero; one with a NaN or an infinity becomes NaN.
"""

from dataclasses import dataclass

import torch

from dspark_kernels.cpu.runtime import Op, current

GROUP = 32
TILE_ROWS = 8  # rows multiplied together; the last tile holds the rest
BYTE = 8
LARGEST = 127.0  # of either byte
FIELDS_AT = 2 * GROUP  # bytes of one row: 32 codes, then the four fields of RoundedRows
GROUP_BYTES = FIELDS_AT + 16
SMALLEST = 2.0**-100


@dataclass(frozen=True, slots=True)
class RoundedRows:
    """`data` uint8: tiles of up to 8 rows, each [K / 32] records of
    int8 [2, 8, rows, 4] first bytes, then second ones, float32 [rows] scales, int32 [rows] -8 · sum
    of the codes, float32 [rows] scale · sum, int32 [rows] -8 · sum of the first 16 codes."""

    data: torch.Tensor
    num_rows: int
    width: int

    def codes(self) -> torch.Tensor:
        """int32 [N, K]."""
        parts = [t[:, : FIELDS_AT * n].reshape(-1, 2, 8, n, 4) for n, t in self._tiles()]
        by_row = [p.permute(1, 3, 0, 2, 4).reshape(2, p.shape[3], -1) for p in parts]
        first, second = torch.cat(by_row, dim=1).view(torch.int8).int()
        codes: torch.Tensor = (first << BYTE) + second
        return codes

    def scales(self) -> torch.Tensor:
        """float32 [N, K / 32]."""
        return self._field(0).view(torch.float32)

    def sums(self) -> torch.Tensor:
        """int32 [N, K / 32]: -8 times the sum of each group's codes."""
        return self._field(1)

    def scaled_sums(self) -> torch.Tensor:
        """float32 [N, K / 32]: scale times the sum of each group's codes."""
        return self._field(2).view(torch.float32)

    def values(self) -> torch.Tensor:
        """float32 [N, K]: the rounded values."""
        codes = self.codes().unflatten(1, (-1, GROUP)).float()
        out: torch.Tensor = (codes * self.scales().unsqueeze(-1)).flatten(1)
        return out

    def _field(self, index: int) -> torch.Tensor:
        fields = []
        for n, tile in self._tiles():
            start = FIELDS_AT * n + 4 * n * index
            fields.append(tile[:, start : start + 4 * n].contiguous().view(torch.int32).t())
        return torch.cat(fields).contiguous()

    def _tiles(self) -> list[tuple[int, torch.Tensor]]:
        """Rows of each tile, and its records uint8 [K / 32, 48 rows]."""
        sizes = [min(TILE_ROWS, self.num_rows - i) for i in range(0, self.num_rows, TILE_ROWS)]
        groups = self.width // GROUP
        parts = self.data.split([n * groups * GROUP_BYTES for n in sizes])
        return [(n, p.view(groups, n * GROUP_BYTES)) for n, p in zip(sizes, parts, strict=True)]


def empty_rounded(num_rows: int, width: int) -> RoundedRows:
    """Raises ValueError if the width is not a multiple of the group."""
    if width <= 0 or width % GROUP:
        raise ValueError(f"rows of {width} numbers are not groups of {GROUP}")
    size = num_rows * width // GROUP * GROUP_BYTES
    return RoundedRows(torch.empty(size, dtype=torch.uint8), num_rows, width)


def round_rows(x: torch.Tensor) -> RoundedRows:
    """x float32 [N, K], K a multiple of 32."""
    runtime = current()
    if runtime is None:
        return round_rows_reference(x)
    out = empty_rounded(*x.shape)
    x = x.contiguous()
    runtime.run([Op("round_rows", 0, 1, (x, out.data, x.shape[1] // GROUP))], len(x))
    return out


def round_rows_reference(x: torch.Tensor) -> RoundedRows:
    """As round_rows, in torch."""
    out = empty_rounded(*x.shape)
    grouped = x.unflatten(1, (-1, GROUP))
    # of the bits: they are ordered as the magnitudes are, and a NaN is above all
    bits = (grouped.contiguous().view(torch.int32) & 0x7FFFFFFF).amax(-1, keepdim=True)
    largest = bits.view(torch.float32)
    is_small = largest < SMALLEST
    scales = torch.where(is_small, 0.0, largest / LARGEST) + (largest - largest)
    # a number over a tensor would be a reciprocal and a product, which is rounded twice
    scaled = grouped * torch.where(is_small, 0.0, torch.full_like(largest, LARGEST) / largest)
    first = scaled.round()
    second = ((scaled - first) * 2.0**BYTE).clamp(-LARGEST, LARGEST).round()
    both = torch.stack([first, second], dim=2).nan_to_num(0.0).to(torch.int8)  # [N, G, 2, 32]
    codes = (both[:, :, 0].int() << BYTE) + both[:, :, 1]
    sums = codes.sum(-1, dtype=torch.int32)
    half_sums = codes[..., : GROUP // 2].sum(-1, dtype=torch.int32)
    scales = scales.squeeze(-1) * 2.0**-BYTE
    scaled_sums = (scales * sums.float()).view(torch.int32)
    fields = (scales.view(torch.int32), -8 * sums, scaled_sums, -8 * half_sums)
    for index, (n, tile) in enumerate(out._tiles()):
        rows = slice(index * TILE_ROWS, index * TILE_ROWS + n)
        quads = both[rows].unflatten(3, (8, 4)).permute(1, 2, 3, 0, 4)  # [G, 2, 8, n, 4]
        tile[:, : FIELDS_AT * n] = quads.reshape(-1, FIELDS_AT * n).view(torch.uint8)
        for field, words in enumerate(fields):
            start = FIELDS_AT * n + 4 * n * field
            by_group = words[rows].t().flatten().view(torch.uint8)
            tile[:, start : start + 4 * n] = by_group.view(-1, 4 * n)
    return out
