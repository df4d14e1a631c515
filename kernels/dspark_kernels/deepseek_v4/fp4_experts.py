"""Routed experts in slots on the card: FP4 codes as the file has them, rows of 8 bits, whole sums.

The four rules of cpu/mxfp4 and cpu/clamped_swiglu: sums of codes are integers; a group of 32 is
added by one fma with a power of two; silu is a written recipe; a row's sum begins with the shared
expert and takes the routed ones in the order of the route, each by one fma with its share. So it is
the CPU's, to the bit, whatever lies where.

Within a group of 32, codes of rows are in the order of the file's nibbles: even columns, then odd.
"""

from typing import NamedTuple

import torch

from dspark_kernels.backend import jit, next_power_of_2, tl, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.cpu import exact, int8_rows
from dspark_kernels.cpu.clamped_swiglu import clamped_swiglu_reference
from dspark_kernels.cpu.file_weight import FileWeight
from dspark_kernels.cpu.mxfp4 import Segment, multiply_segment_reference
from dspark_kernels.deepseek_v4.exact_math import MAGIC, UNFUSED, clamped_swiglu, fma
from dspark_kernels.deepseek_v4.route import WORDS, Segments

GROUP = tl.constexpr(int8_rows.GROUP)
LARGEST = tl.constexpr(int8_rows.LARGEST)
LARGEST_MANTISSA = tl.constexpr(int8_rows.LARGEST_MANTISSA)
SMALLEST_BITS = tl.constexpr(int8_rows.SMALLEST_BITS)
STEPS_OF_LARGEST = tl.constexpr(int8_rows.STEPS_OF_LARGEST)
TWICE_BIAS = tl.constexpr(2 * int8_rows.BIAS)
ROWS = 8  # of a segment, in a program
TILE = 64  # outputs of a program of the second product
GROUPS = 32  # that a program rounds
COLUMNS = 1024  # that a program adds up
WARPS = 2


class CardRows(NamedTuple):
    """Rows of 8 bits: codes int8 [N, K], half scales float32 [N, K / 32]."""

    codes: torch.Tensor
    halves: torch.Tensor


class ExpertBank(NamedTuple):
    """memory uint8 [slots, bytes]; `parts`: where codes and scales of gate, up and down begin in a
    slot; expert matrices are [inner, hidden], [inner, hidden] and [hidden, inner]."""

    memory: torch.Tensor
    parts: tuple[int, int, int, int, int, int]
    hidden: int
    inner: int


def empty_rows(num_rows: int, width: int, device: torch.device) -> CardRows:
    codes = torch.empty(num_rows, width, dtype=torch.int8, device=device)
    return CardRows(codes, torch.empty(num_rows, width // int8_rows.GROUP, device=device))


def round_rows(x: torch.Tensor, out: CardRows) -> None:
    """x float32 [N, K] as round_int8 rounds it."""
    if not use_triton(x):
        return round_rows_reference(x, out)
    num_rows, width = x.shape
    groups = width // int8_rows.GROUP
    round_rows_kernel[(num_rows, -(-groups // GROUPS))](
        x, out.codes, out.halves, WIDTH=width, GROUPS=GROUPS, num_warps=4, **UNFUSED
    )


def feed_segments(
    x: CardRows,
    segments: Segments,
    bank: ExpertBank,
    limit: float,
    inner: CardRows,
    said: torch.Tensor,
    most_rows: int | None = None,
) -> None:
    """Of the pairs [P] of segments whose expert has a slot: `inner` [P, inner], rounded, and what
    the expert says, `said` [P, hidden]. Others stay as they are. `most_rows`: of a segment, if the
    host knows; a row comes to an expert once."""
    if not use_triton(said):
        return feed_segments_reference(x, segments, bank, limit, inner, said)
    most, (gate, gate_scales, up, up_scales, down, down_scales) = len(segments.words), bank.parts
    tiles = -(-(most_rows or len(x.codes)) // ROWS)
    open_experts_kernel[(bank.inner // int8_rows.GROUP, most, tiles)](
        x.codes,
        x.halves,
        segments.words,
        segments.pair_rows,
        bank.memory,
        inner.codes,
        inner.halves,
        limit,
        bank.memory.stride(0),
        gate,
        gate_scales,
        up,
        up_scales,
        HIDDEN=bank.hidden,
        INNER=bank.inner,
        ROWS=ROWS,
        num_warps=WARPS,
        **UNFUSED,
    )
    tile = min(TILE, bank.hidden & -bank.hidden)
    close_experts_kernel[(bank.hidden // tile, most, tiles)](
        inner.codes,
        inner.halves,
        segments.words,
        bank.memory,
        said,
        bank.memory.stride(0),
        down,
        down_scales,
        HIDDEN=bank.hidden,
        INNER=bank.inner,
        TILE=tile,
        ROWS=ROWS,
        num_warps=WARPS,
        **UNFUSED,
    )


def add_experts(
    out: torch.Tensor, said: torch.Tensor, places: torch.Tensor, shares: torch.Tensor
) -> None:
    """out [N, H], what the shared expert says, plus `said` [P, H] by places int32 [N, k], each by
    fma with its share [N, k]; in place."""
    if not use_triton(out):
        return add_experts_reference(out, said, places, shares)
    (num_rows, width), top = out.shape, places.shape[1]
    block = min(COLUMNS, next_power_of_2(width))
    add_experts_kernel[(num_rows, -(-width // block))](
        out, said, places, shares, WIDTH=width, TOP=top, BLOCK=block, num_warps=4, **UNFUSED
    )


def round_rows_reference(x: torch.Tensor, out: CardRows) -> None:
    """As round_rows, in torch."""
    _store_rows(int8_rows.round_int8_reference(x), out)


def feed_segments_reference(
    x: CardRows,
    segments: Segments,
    bank: ExpertBank,
    limit: float,
    inner: CardRows,
    said: torch.Tensor,
) -> None:
    """As feed_segments, in torch."""
    for slot, start, count, _ in segments.words.tolist():
        if slot < 0 or not count:
            continue
        gate, up, down = weights_in(bank, slot)
        mine = slice(start, start + count)
        rows, gate_up = segments.pair_rows[mine].long(), torch.empty(count, 2 * bank.inner)
        stored = _as_int8(CardRows(x.codes[rows], x.halves[rows]))
        for weight, out in ((gate, gate_up[:, : bank.inner]), (up, gate_up[:, bank.inner :])):
            multiply_segment_reference(stored, Segment(weight, torch.arange(count), out))
        rounded = clamped_swiglu_reference(gate_up, limit)
        _store_rows(rounded, CardRows(inner.codes[mine], inner.halves[mine]))
        multiply_segment_reference(rounded, Segment(down, torch.arange(count), said[mine]))


def add_experts_reference(
    out: torch.Tensor, said: torch.Tensor, places: torch.Tensor, shares: torch.Tensor
) -> None:
    """As add_experts, in torch."""
    for place in range(places.shape[1]):
        out.copy_(exact.fma(said[places[:, place].long()], shares[:, place, None], out))


def weights_in(bank: ExpertBank, slot: int) -> tuple[FileWeight, FileWeight, FileWeight]:
    """Gate, up and down of a slot, in its memory."""
    row, found = bank.memory[slot], []
    shapes = ((bank.inner, bank.hidden), (bank.inner, bank.hidden), (bank.hidden, bank.inner))
    for number, (outputs, columns) in enumerate(shapes):
        codes, scales = (row[begin:] for begin in bank.parts[2 * number : 2 * number + 2])
        groups = columns // int8_rows.GROUP
        found.append(
            FileWeight(
                "fp4",
                codes[: outputs * columns // 2].view(outputs, -1),
                scales[: outputs * groups].view(outputs, groups),
                1,
                int8_rows.GROUP,
            )
        )
    gate, up, down = found
    return gate, up, down


def _store_rows(rows: int8_rows.Int8Rows, out: CardRows) -> None:
    by_parity = rows.codes().unflatten(1, (-1, 16, 2)).transpose(2, 3)
    out.codes.copy_(by_parity.flatten(1))
    out.halves.copy_(rows.half_scales())


def _as_int8(rows: CardRows) -> int8_rows.Int8Rows:
    """As the CPU's kernels have them."""
    out = int8_rows.empty_int8(*rows.codes.shape)
    natural = rows.codes.unflatten(1, (-1, 2, 16)).transpose(2, 3)  # [N, groups, 16, parity]
    quads = natural.unflatten(2, (4, 4)).transpose(3, 4).flatten(2)
    out.data[:, :, : int8_rows.GROUP] = quads.contiguous().view(torch.uint8)
    sums = -int8_rows.OFFSET * natural.flatten(2).sum(-1, dtype=torch.int32)
    for start, field in ((int8_rows.GROUP, rows.halves), (int8_rows.GROUP + 4, sums)):
        whole = field.unsqueeze(-1).contiguous().view(torch.uint8)
        out.data[:, :, start : start + 4] = whole
    return out


@jit
def round_rows_kernel(
    x: tl.tensor,  # [N, WIDTH]
    codes: tl.tensor,  # [N, WIDTH]
    halves: tl.tensor,  # [N, WIDTH / 32]
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    group, place = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS), tl.arange(0, GROUP)
    inside = group < WIDTH // GROUP
    column = place % 16 * 2 + place // 16
    at = row * WIDTH + group[:, None] * GROUP
    values = tl.load(x + at + column[None, :], mask=inside[:, None], other=0.0)
    bits = tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)
    half, inverse = scales_of(bits)
    stored = codes_of(values, inverse[:, None])
    tl.store(codes + at + place[None, :], stored, mask=inside[:, None])
    tl.store(halves + row * (WIDTH // GROUP) + group, half, mask=inside)


@jit
def scales_of(bits: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Of the bits of a group's largest magnitude: half its scale, and one over the scale."""
    largest = bits.to(tl.float32, bitcast=True)
    more = ((bits & 0x7FFFFF) > LARGEST_MANTISSA).to(tl.int32)
    exponent = (bits >> 23) - STEPS_OF_LARGEST + more
    is_small = bits < SMALLEST_BITS
    half = tl.where(is_small, 0.0, ((exponent - 1) << 23).to(tl.float32, bitcast=True))
    inverse = ((-exponent + TWICE_BIAS) << 23).to(tl.float32, bitcast=True)
    return half + (largest - largest), tl.where(is_small, 0.0, inverse)


@jit
def codes_of(values: tl.tensor, inverse: tl.tensor) -> tl.tensor:
    """Rounded to nearest even; 0 of what is no number."""
    scaled = values * inverse
    scaled = tl.where(tl.abs(scaled) <= LARGEST, scaled, 0.0)
    return ((scaled + MAGIC) - MAGIC).to(tl.int8)


@jit
def open_experts_kernel(
    codes: tl.tensor,  # [N, HIDDEN]
    halves: tl.tensor,  # [N, HIDDEN / 32]
    segments: tl.tensor,  # [most segments, WORDS]
    pair_rows: tl.tensor,  # [pairs]
    bank: tl.tensor,  # [slots, slot_bytes]
    inner_codes: tl.tensor,  # [pairs, INNER]
    inner_halves: tl.tensor,  # [pairs, INNER / 32]
    limit: tl.tensor,
    slot_bytes: tl.tensor,
    gate_at: tl.tensor,
    gate_scales_at: tl.tensor,
    up_at: tl.tensor,
    up_scales_at: tl.tensor,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """32 outputs of gate and up, for up to ROWS rows of a segment: SwiGLU of them, rounded."""
    tile, segment = tl.program_id(0), segments + tl.program_id(1) * WORDS
    slot, start, count = tl.load(segment), tl.load(segment + 1), tl.load(segment + 2)
    number = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    if (slot >= 0) & (tl.program_id(2) * ROWS < count):
        is_pair, pair = number < count, (start + number).to(tl.int64)
        row = tl.load(pair_rows + pair, mask=is_pair, other=0).to(tl.int64)
        own = bank + slot.to(tl.int64) * slot_bytes
        output = tile * GROUP + tl.arange(0, GROUP)
        gate = tl.zeros((GROUP, ROWS), tl.float32)
        up = tl.zeros((GROUP, ROWS), tl.float32)
        for group in range(HIDDEN // GROUP):
            some, half = _rows(codes, halves, row, is_pair, group, HIDDEN)
            gate = _added(
                gate, own + gate_at, own + gate_scales_at, output, group, some, half, HIDDEN
            )
            up = _added(up, own + up_at, own + up_scales_at, output, group, some, half, HIDDEN)
        gated = clamped_swiglu(gate, up, limit)
        bits = tl.max(gated.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0)
        half, inverse = scales_of(bits)
        column = tl.arange(0, GROUP)
        place = tile * GROUP + column % 2 * 16 + column // 2
        target = inner_codes + pair[None, :] * INNER + place[:, None]
        tl.store(target, codes_of(gated, inverse[None, :]), mask=is_pair[None, :])
        tl.store(inner_halves + pair * (INNER // GROUP) + tile, half, mask=is_pair)


@jit
def close_experts_kernel(
    codes: tl.tensor,  # [pairs, INNER]
    halves: tl.tensor,  # [pairs, INNER / 32]
    segments: tl.tensor,  # [most segments, WORDS]
    bank: tl.tensor,  # [slots, slot_bytes]
    said: tl.tensor,  # [pairs, HIDDEN]
    slot_bytes: tl.tensor,
    down_at: tl.tensor,
    down_scales_at: tl.tensor,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """TILE outputs of down, for up to ROWS rows of a segment."""
    segment = segments + tl.program_id(1) * WORDS
    slot, start, count = tl.load(segment), tl.load(segment + 1), tl.load(segment + 2)
    number = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    if (slot >= 0) & (tl.program_id(2) * ROWS < count):
        is_pair, pair = number < count, (start + number).to(tl.int64)
        own = bank + slot.to(tl.int64) * slot_bytes
        output = tl.program_id(0) * TILE + tl.arange(0, TILE)
        total = tl.zeros((TILE, ROWS), tl.float32)
        for group in range(INNER // GROUP):
            some, half = _rows(codes, halves, pair, is_pair, group, INNER)
            total = _added(
                total, own + down_at, own + down_scales_at, output, group, some, half, INNER
            )
        target = said + pair[None, :] * HIDDEN + output[:, None]
        tl.store(target, total, mask=is_pair[None, :])


@jit
def _rows(
    codes: tl.tensor,
    halves: tl.tensor,
    row: tl.tensor,
    is_row: tl.tensor,
    group: tl.tensor,
    WIDTH: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """A group of rows: codes [32, ROWS], half scales [ROWS]."""
    place = tl.arange(0, GROUP)
    at = codes + row[None, :] * WIDTH + group * GROUP + place[:, None]
    some = tl.load(at, mask=is_row[None, :], other=0)
    return some, tl.load(halves + row * (WIDTH // GROUP) + group, mask=is_row, other=0.0)


@jit
def _added(
    total: tl.tensor,  # [outputs, ROWS]
    codes: tl.tensor,  # [outputs, WIDTH / 2]
    scales: tl.tensor,  # [outputs, WIDTH / 32]
    output: tl.tensor,
    group: tl.tensor,
    rows: tl.tensor,  # [32, ROWS]
    half: tl.tensor,  # [ROWS]
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """A group of 32 columns more."""
    place = tl.arange(0, GROUP)
    at = output[:, None] * (WIDTH // 2) + group * 16 + (place % 16)[None, :]
    stored = tl.load(codes + at).to(tl.int32) >> (place // 16 * 4)[None, :]
    sums = tl.dot(_twice(stored), rows, out_dtype=tl.int32).to(tl.float32)
    exponent = tl.load(scales + output * (WIDTH // GROUP) + group).to(tl.int32)
    factor = (exponent << 23).to(tl.float32, bitcast=True)
    return fma(sums, factor[:, None] * half[None, :], total)


@jit
def _twice(codes: tl.tensor) -> tl.tensor:
    """Twice the value of e2m1 in the lower four bits, int8."""
    size = codes & 7
    twice = size + (size > 4).to(tl.int32) + (size > 5).to(tl.int32)
    twice += (size > 6).to(tl.int32) * 3
    return tl.where((codes & 8) > 0, -twice, twice).to(tl.int8)


@jit
def add_experts_kernel(
    out: tl.tensor,  # [N, WIDTH]
    said: tl.tensor,  # [pairs, WIDTH]
    places: tl.tensor,  # [N, TOP]
    shares: tl.tensor,  # [N, TOP]
    WIDTH: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    total = tl.load(out + row * WIDTH + column, mask=inside, other=0.0)
    for index in tl.static_range(TOP):
        place = tl.load(places + row * TOP + index).to(tl.int64)
        part = tl.load(said + place * WIDTH + column, mask=inside, other=0.0)
        total = fma(part, tl.load(shares + row * TOP + index), total)
    tl.store(out + row * WIDTH + column, total, mask=inside)


def builds() -> list[KernelBuild]:
    sizes = {"HIDDEN": 4096, "INNER": 2048, "ROWS": ROWS}
    rounding = {"x": "*fp32", "codes": "*i8", "halves": "*fp32"}
    base = {"codes": "*i8", "halves": "*fp32", "segments": "*i32", "bank": "*u8"}
    base |= {"slot_bytes": "i32"}
    opening = base | {"pair_rows": "*i32", "inner_codes": "*i8", "inner_halves": "*fp32"}
    opening |= {"limit": "fp32"}
    opening |= dict.fromkeys(("gate_at", "gate_scales_at", "up_at", "up_scales_at"), "i32")
    closing = base | {"said": "*fp32", "down_at": "i32", "down_scales_at": "i32"}
    adding = {"out": "*fp32", "said": "*fp32", "places": "*i32", "shares": "*fp32"}
    of_sum = {"WIDTH": 4096, "BLOCK": COLUMNS}
    return [
        KernelBuild(
            "v4 round rows", round_rows_kernel, rounding, {"WIDTH": 4096, "GROUPS": GROUPS},
            fuses=False,
        ),
        KernelBuild(
            "v4 experts gate and up", open_experts_kernel, opening, sizes, num_warps=WARPS,
            fuses=False,
        ),
        KernelBuild(
            "v4 experts down", close_experts_kernel, closing, sizes | {"TILE": TILE},
            num_warps=WARPS, fuses=False,
        ),
        KernelBuild("v4 add experts", add_experts_kernel, adding, of_sum | {"TOP": 6}, fuses=False),
    ]  # fmt: skip
