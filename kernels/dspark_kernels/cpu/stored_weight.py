"""A weight [N, K] in the codes of its file, laid out as the CPU's matrices read it.

A block is 16 outputs, a group 32 inputs in eight quads of four. For each block and group stand,
lane by lane (a lane is an output): the low bits, two quads in the halves of a byte (even below odd)
or, of 8 bits, one; the high bits; the factors; the leasts. Planes of one kind lie together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dspark_kernels.cpu.formats import FORMATS, SUPER, Format
from dspark_kernels.cpu.gguf_blocks import Parts, take_apart
from dspark_kernels.one_thread import one_thread

LANES = 16
ROWS_AT_ONCE = 1024
PLANES = ("low", "high", "factors", "leasts", "super_factors", "super_leasts")


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """`data` uint8 holds the planes one after the other, whole blocks of outputs."""

    kind: str
    num_outputs: int
    width: int
    data: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_outputs, self.width

    @property
    def num_blocks(self) -> int:
        return -(-self.num_outputs // LANES)

    @property
    def num_columns(self) -> int:
        """Outputs in whole blocks, as they are written."""
        return self.num_blocks * LANES

    def planes(self) -> list[torch.Tensor]:
        """uint8 views in the order of PLANES, empty for planes the format lacks."""
        sizes = _plane_bytes(FORMATS[self.kind], self.num_blocks, self.width // 32)
        return list(self.data.split(sizes))

    def rows(self, outputs: torch.Tensor) -> torch.Tensor:
        """float32 [n, K] of these outputs, as an embedding is read."""
        return _values(self, outputs // LANES, outputs % LANES)

    def dequantized(self) -> torch.Tensor:
        """float32 [N, K]; a part at a time, since codes grow on the way."""
        out = torch.empty(self.shape)
        for start in range(0, self.num_outputs, ROWS_AT_ONCE):
            end = min(start + ROWS_AT_ONCE, self.num_outputs)
            out[start:end] = self.rows(torch.arange(start, end))
        return out

    def parts(self, outputs: torch.Tensor) -> Parts:
        """As take_apart gave them."""
        return _parts(self, outputs // LANES, outputs % LANES)


def stored_weight(kind: str, blocks: torch.Tensor) -> StoredWeight:
    """blocks uint8 [N, bytes per row] of a GGUF. Raises ValueError if they are invalid."""
    if kind not in FORMATS:
        raise ValueError(f"weights in {kind} are not multiplied as they are stored")
    return pack(kind, take_apart(kind, blocks))


@one_thread()
def concatenated(weights: Sequence[StoredWeight]) -> StoredWeight | None:
    """Concatenated by outputs; None if formats differ or a block would hold outputs of two."""
    first = weights[0]
    if any(each.kind != first.kind or each.width != first.width for each in weights):
        return None
    if any(each.num_outputs % LANES for each in weights[:-1]):
        return None
    planes = zip(*(each.planes() for each in weights), strict=True)
    data = torch.cat([part for plane in planes for part in plane])
    return StoredWeight(first.kind, sum(each.num_outputs for each in weights), first.width, data)


def num_bytes(kind: str, num_outputs: int, width: int) -> int:
    """Of `data`. Raises ValueError if it cannot be stored."""
    if kind not in FORMATS or num_outputs <= 0 or width <= 0 or width % FORMATS[kind].block:
        raise ValueError(f"no weight [{num_outputs}, {width}] is stored in {kind}")
    return sum(_plane_bytes(FORMATS[kind], -(-num_outputs // LANES), width // 32))


def pack(kind: str, parts: Parts) -> StoredWeight:
    num_outputs, width = parts.codes.shape
    if width == 0 or width % FORMATS[kind].block:
        raise ValueError(f"{kind} rows of {width} numbers are not groups of {FORMATS[kind].block}")
    codes = _padded(parts.codes).unflatten(0, (-1, LANES)).unflatten(2, (-1, 8, 4))
    codes = codes.permute(0, 2, 3, 1, 4)  # [blocks, G, quads, lanes, 4]
    planes = [_low_plane(codes, FORMATS[kind]), _high_plane(codes, FORMATS[kind])]
    planes += [_lanes(x) for x in (parts.factors, parts.leasts, parts.super_factors)]
    planes += [_lanes(parts.super_leasts)]
    return StoredWeight(kind, num_outputs, width, torch.cat([p.flatten() for p in planes]))


def _plane_bytes(form: Format, blocks: int, groups: int) -> list[int]:
    each = LANES * (1 if form.is_super else 2)
    supers = blocks * (groups // SUPER) * LANES * 2 if form.is_super else 0
    return [
        blocks * groups * 64 * form.low_bits,
        blocks * groups * 64 * form.high_bits,
        blocks * groups * each * form.parts,
        blocks * groups * each if form.has_least else 0,
        supers,
        supers if form.has_least else 0,
    ]


def _padded(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, -x.shape[0] % LANES))


def _lanes(x: torch.Tensor | None) -> torch.Tensor:
    """[N, n] -> bytes of [blocks, n, lanes]."""
    if x is None:
        return torch.empty(0, dtype=torch.uint8)
    by_lane = _padded(x).unflatten(0, (-1, LANES)).transpose(1, 2).contiguous()
    out: torch.Tensor = by_lane.view(torch.uint8)
    return out


def _low_plane(codes: torch.Tensor, form: Format) -> torch.Tensor:
    if form.low_bits == 8:
        return codes.contiguous()
    return (codes[:, :, 0::2] & 15) | (codes[:, :, 1::2] & 15) << 4


def _high_plane(codes: torch.Tensor, form: Format) -> torch.Tensor:
    """Of one bit: bit j of a byte is quad j's. Of two: of quads 0 to 3, then of 4 to 7."""
    if not form.high_bits:
        return codes[:0].contiguous()
    fields = (codes >> 4).unflatten(2, (form.high_bits, -1))
    shifts = torch.arange(0, 8, form.high_bits, dtype=torch.uint8).view(-1, 1, 1)
    out: torch.Tensor = (fields << shifts).sum(3, dtype=torch.uint8)
    return out


def _parts(weight: StoredWeight, block: torch.Tensor, lane: torch.Tensor) -> Parts:
    form, groups = FORMATS[weight.kind], weight.width // 32
    low, high, *factors = (plane.view(weight.num_blocks, -1) for plane in weight.planes())
    half = torch.uint8 if form.is_super else torch.float16

    def quads(plane: torch.Tensor) -> torch.Tensor:
        return plane.view(weight.num_blocks, groups, -1, LANES, 4)[block, :, :, lane]

    codes = quads(low)  # [n, G, vectors, 4]
    if form.low_bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=3).flatten(2, 3)
    if form.high_bits:
        mask, step = (1 << form.high_bits) - 1, form.high_bits
        shifts = torch.arange(0, 8, step, dtype=torch.uint8).unsqueeze(-1)
        codes = codes | (quads(high).unsqueeze(3) >> shifts & mask).flatten(2, 3) << 4

    def numbers(plane: torch.Tensor, kind: torch.dtype) -> torch.Tensor | None:
        if not plane.numel():
            return None
        return plane.view(kind).view(weight.num_blocks, -1, LANES)[block, :, lane]

    kinds = (torch.int8 if weight.kind == "q6_k" else half, half, torch.float16, torch.float16)
    rest = [numbers(plane, kind) for plane, kind in zip(factors, kinds, strict=True)]
    assert rest[0] is not None
    return Parts(codes.flatten(1), rest[0], *rest[1:])


def group_factors(form: Format, parts: Parts) -> tuple[torch.Tensor, torch.Tensor | None]:
    """float32 factors [n, G · parts] and leasts [n, G], each exact."""
    factors, leasts = parts.factors.float(), None
    if parts.leasts is not None:
        leasts = parts.leasts.float()
    if parts.super_factors is not None:
        factors *= parts.super_factors.float().repeat_interleave(SUPER * form.parts, dim=1)
    if parts.super_leasts is not None and leasts is not None:
        leasts = -(leasts * parts.super_leasts.float().repeat_interleave(SUPER, dim=1))
    return factors, leasts


def _values(weight: StoredWeight, block: torch.Tensor, lane: torch.Tensor) -> torch.Tensor:
    form = FORMATS[weight.kind]
    parts = _parts(weight, block, lane)
    factors, leasts = group_factors(form, parts)
    codes = parts.codes.float() - form.offset
    values = codes.unflatten(1, (factors.shape[1], -1)) * factors.unsqueeze(-1)
    values = values.flatten(1).unflatten(1, (-1, 32))
    if leasts is not None:
        values = values + leasts.unsqueeze(-1)
    out: torch.Tensor = values.flatten(1)
    return out
