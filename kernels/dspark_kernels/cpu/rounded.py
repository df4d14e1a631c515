"""Rows rounded to 8 bits in groups of 32, in the order in which the matrices read them.

scale = largest magnitude / 127; code = x · (127 / largest), to nearest even. A group whose largest
is below 2**-100 is zero; one with a NaN or an infinity becomes NaN.
"""

from dataclasses import dataclass

import torch

from dspark_kernels.cpu.runtime import Op, current

GROUP = 32
TILE_ROWS = 8  # rows multiplied together; the last tile holds the rest
GROUP_BYTES = 48  # of one row: 32 codes and the four fields of RoundedRows
SMALLEST = 2.0**-100


@dataclass(frozen=True, slots=True)
class RoundedRows:
    """`data` uint8: tiles of up to 8 rows, each [K / 32] records of
    int8 [8, rows, 4], float32 [rows] scales, int32 [rows] -8 · sum of the codes, float32 [rows]
    scale · sum, int32 [rows] -8 · sum of the first 16."""

    data: torch.Tensor
    num_rows: int
    width: int

    def codes(self) -> torch.Tensor:
        """int8 [N, K]."""
        parts = [t[:, : 32 * n].reshape(-1, 8, n, 4) for n, t in self._tiles()]
        return torch.cat([p.permute(2, 0, 1, 3).reshape(p.shape[2], -1) for p in parts]).view(
            torch.int8
        )

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
            start = GROUP * n + 4 * n * index
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
    scales = torch.where(is_small, 0.0, largest / 127.0) + (largest - largest)
    # a number over a tensor would be a reciprocal and a product, which is rounded twice
    inverse = torch.where(is_small, 0.0, torch.full_like(largest, 127.0) / largest)
    codes = (grouped * inverse).round().nan_to_num(0.0).to(torch.int8)
    sums = codes.sum(-1, dtype=torch.int32)
    first = codes[..., : GROUP // 2].sum(-1, dtype=torch.int32)
    scales = scales.squeeze(-1)
    scaled = (scales * sums.float()).view(torch.int32)
    fields = (scales.view(torch.int32), -8 * sums, scaled, -8 * first)
    for index, (n, tile) in enumerate(out._tiles()):
        rows = slice(index * TILE_ROWS, index * TILE_ROWS + n)
        quads = codes[rows].unflatten(2, (8, 4)).permute(1, 2, 0, 3)  # [G, 8, n, 4]
        tile[:, : GROUP * n] = quads.reshape(-1, GROUP * n).view(torch.uint8)
        for field, words in enumerate(fields):
            start = GROUP * n + 4 * n * field
            by_group = words[rows].t().flatten().view(torch.uint8)
            tile[:, start : start + 4 * n] = by_group.view(-1, 4 * n)
    return out
