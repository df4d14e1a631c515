"""A weight [N, K] in the bytes of its file: plain numbers, FP8 in blocks, or FP4 in runs of 32.

FP8 is e4m3 and FP4 is e2m1, two codes to a byte with the even column in the low half; a block has
the byte of an exponent (e8m0): 2^(byte - 127), or in "fp8_float" a float32. Bytes may be mapped
from the file: nothing copies them.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch

from dspark_kernels.cpu.row_table import RowTable

Kind = Literal["float32", "bfloat16", "fp8", "fp8_float", "fp4"]
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # by the lower three bits; the highest is the sign
SCALE_BIAS = 127
SMALLEST_SCALE, LARGEST_SCALE = 1, 254  # 255 is no number, and 0 no normal float32


class Packing(NamedTuple):
    """`exponent`: codes as the bits of half floats are 2^-exponent of their value."""

    bits: int
    exponent: int = 0


PACKINGS: dict[Kind, Packing] = {
    "float32": Packing(32),
    "bfloat16": Packing(16),
    "fp8": Packing(8, 8),
    "fp8_float": Packing(8, 8),
    "fp4": Packing(4, 14),
}
KINDS: dict[torch.dtype, Kind] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float8_e4m3fn: "fp8",
}


@dataclass(frozen=True, slots=True)
class FileWeight:
    """codes uint8 [N, bytes of a row]; scales uint8 or float32 [N / height, K / width] of blocks,
    None for plain numbers."""

    kind: Kind
    codes: torch.Tensor
    scales: torch.Tensor | None = None
    height: int = 1
    width: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for scales that do not fit."""
        (num_rows, num_columns), found = self.shape, None
        if self.scales is not None:
            found = tuple(self.scales.shape)
        wanted = None
        if self.width:
            wanted = (-(-num_rows // self.height), -(-num_columns // self.width))
        if found != wanted or (PACKINGS[self.kind].exponent > 0) != (wanted is not None):
            raise ValueError(f"scales are {found}, {wanted} expected")

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1] * 8 // PACKINGS[self.kind].bits

    @property
    def num_bytes(self) -> int:
        return self.codes.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def rows(self, begin: int, end: int) -> "FileWeight":
        """Rows `begin` to `end`, in the same memory. Raises ValueError inside a block."""
        if begin % self.height:
            raise ValueError(f"row {begin} is inside a block of {self.height}")
        scales = self.scales
        if scales is not None:
            scales = scales[begin // self.height : -(-end // self.height)]
        return replace(self, codes=self.codes[begin:end], scales=scales)

    def values(self) -> torch.Tensor:
        """Codes as numbers, without their scales: float32 [N, K]."""
        if self.kind == "fp4":
            signed = torch.tensor([*E2M1, *(-value for value in E2M1)])
            both = torch.stack([self.codes & 15, self.codes >> 4], dim=-1)
            return signed[both.flatten(1).int()]
        kind = "fp8" if self.kind == "fp8_float" else self.kind
        dtype = next(dtype for dtype, of in KINDS.items() if of == kind)
        return self.codes.contiguous().view(dtype).float()

    def factors(self) -> torch.Tensor:
        """Of blocks: float32 [N / height, K / width]."""
        assert self.scales is not None
        return self.scales if self.kind == "fp8_float" else scale_values(self.scales)

    def dequantized(self) -> torch.Tensor:
        """float32 [N, K]."""
        values = self.values()
        if self.scales is None:
            return values
        num_rows, num_columns = self.shape
        factors = self.factors().repeat_interleave(self.height, dim=0)[:num_rows]
        return values * factors.repeat_interleave(self.width, dim=1)[:, :num_columns]


def scale_values(scales: torch.Tensor) -> torch.Tensor:
    """uint8 exponents, none of them 255 -> float32; 0 counts as a scale of zero."""
    return (scales.int() << 23).view(torch.float32)


def file_weight(
    tensor: torch.Tensor, scales: torch.Tensor | None = None, height: int = 1, width: int = 0
) -> FileWeight:
    """Of a tensor [N, K] as it is stored; bytes without a dtype of their own are FP4. Scales are
    bytes of exponents, or float32."""
    kind = KINDS.get(tensor.dtype, "fp4")
    if scales is not None and scales.dtype == torch.float32:
        kind = "fp8_float"
    elif scales is not None:
        scales = scales.view(torch.uint8)
    return FileWeight(kind, tensor.view(torch.uint8), scales, height, width)


def has_invalid_scale(scales: torch.Tensor) -> bool:
    """scales uint8 [...]."""
    low, high = scales.aminmax()
    return bool(low < SMALLEST_SCALE or high > LARGEST_SCALE)


class FileTable(RowTable):
    """A plain weight read by rows, as an embedding is: as much of it as that takes."""

    def __init__(self, weight: FileWeight) -> None:
        super().__init__(weight.shape)
        self.stored = weight

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """As RowTable.rows, on the device of the ids."""
        codes = self.stored.codes[ids.to(self.stored.codes.device)]
        return replace(self.stored, codes=codes).values().to(ids.device)
