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
CODE_BYTES, FIELD_BYTES = 2 * GROUP, 16  # of a group of a row
GROUP_BYTES = CODE_BYTES + FIELD_BYTES
SMALLEST = 2.0**-100
SLACK = TILE_ROWS * CODE_BYTES  # bytes behind the end that may be read, a group of a whole tile


@dataclass(frozen=True, slots=True)
class RoundedRows:
    """`data` uint8: tiles of up to 8 rows, each int8 [K / 32, rows, 2, 32] first and second bytes,
    then [K / 32, rows, 4] fields: float32 scale, int32 -8 · sum of the codes, float32 scale · sum,
    int32 -8 · sum of the first 16 codes."""

    data: torch.Tensor
    num_rows: int
    width: int

    def codes(self) -> torch.Tensor:
        """int32 [N, K]."""
        by_row = [codes.transpose(0, 1) for codes, _ in self._tiles()]
        whole = torch.cat(by_row).view(torch.int8).int()  # [N, G, 2, 32]
        first, second = whole.flatten(0, 1).unbind(1)
        codes: torch.Tensor = (first << BYTE) + second
        return codes.view(self.num_rows, self.width)

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
        return torch.cat([fields[..., index].t() for _, fields in self._tiles()]).contiguous()

    def _tiles(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of each tile the codes uint8 [K / 32, rows, 2, 32] and fields int32 [K / 32, rows, 4]."""
        sizes = [min(TILE_ROWS, self.num_rows - i) for i in range(0, self.num_rows, TILE_ROWS)]
        groups, tiles = self.width // GROUP, []
        for n, tile in zip(
            sizes, self.data.split([n * groups * GROUP_BYTES for n in sizes]), strict=True
        ):
            codes, fields = tile.split([n * groups * CODE_BYTES, n * groups * FIELD_BYTES])
            tiles.append((codes.view(groups, n, 2, GROUP), fields.view(torch.int32)))
        return [(codes, fields.view(groups, -1, 4)) for codes, fields in tiles]


def empty_rounded(num_rows: int, width: int) -> RoundedRows:
    """Raises ValueError if the width is not a multiple of the group."""
    if width <= 0 or width % GROUP:
        raise ValueError(f"rows of {width} numbers are not groups of {GROUP}")
    size = num_rows * width // GROUP * GROUP_BYTES
    data = torch.empty(size + SLACK, dtype=torch.uint8)[:size]
    return RoundedRows(data, num_rows, width)


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
    for index, (tile_codes, tile_fields) in enumerate(out._tiles()):
        rows = slice(index * TILE_ROWS, (index + 1) * TILE_ROWS)
        tile_codes.copy_(both[rows].transpose(0, 1).view(torch.uint8))
        tile_fields.copy_(torch.stack([field[rows].t() for field in fields], dim=-1))
    return out
