"""The kernel of skinny_linear.py: tiles of a product over parts of K, and their sum in order."""

from dspark_kernels.backend import jit, tl
from dspark_kernels.dependent_launch import LINE, touch, wait_for_previous
from dspark_kernels.last_arriver import arrives_last
from dspark_kernels.rounding import INTERPRETED, product, round_to
from dspark_kernels.unpack_int4 import unpacked

ROW_TILE = tl.constexpr(16)  # the least that tl.dot takes
LINE_BYTES = tl.constexpr(LINE)


@jit
def exact(codes: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Small integers in the type that they are multiplied in."""
    if INTERPRETED:  # which takes an integer for the bits of a bf16
        return codes.to(tl.float32)
    return codes.to(dtype)


@jit
def fp8_value(bits: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """e4m3 for cards without it: its bits, shifted, are an fp16 of 1/256 of the value."""
    wide = ((bits & 0x80).to(tl.uint16) << 8) | ((bits & 0x7F).to(tl.uint16) << 7)
    value = wide.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return value.to(dtype)


@jit
def byte_value(codes: tl.tensor, KIND: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    """What codes of a byte each mean, before their scale."""
    if KIND == "int8":
        value = exact(codes, dtype)
    elif KIND == "fp8_bits":
        value = fp8_value(codes, dtype)
    else:
        value = codes.to(dtype)
    return value


@jit
def codes_less_zero(packed: tl.tensor, zero: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Of int4, the codes in lower and in upper halves of bytes."""
    if INTERPRETED or dtype == tl.float32:
        low = (packed & 15).to(tl.int8) - zero.to(tl.int8)
        high = (packed >> 4).to(tl.int8) - zero.to(tl.int8)
        return exact(low, dtype), exact(high, dtype)
    return unpacked(packed, zero, dtype)


@jit
def doubled_e2m1(codes: tl.tensor) -> tl.tensor:
    """Twice the value of each 4-bit code (sign, two of exponent, one of mantissa): a whole
    number."""
    size = (codes & 7).to(tl.int8)
    doubled = tl.where(size < 2, size, (2 + (size & 1)) << tl.maximum((size >> 1) - 1, 0))
    return tl.where(codes < 8, doubled, -doubled)


@jit
def e8m0_value(bits: tl.tensor) -> tl.tensor:
    """2^(bits - 127) in float32; 255 is NaN. For 0 and 255 the mantissa decides."""
    wide = bits.to(tl.int32) << 23
    wide = tl.where((bits == 0) | (bits == 255), wide | 0x400000, wide)
    return wide.to(tl.float32, bitcast=True)


@jit
def weight_tile(
    codes: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    columns: tl.tensor,
    step: tl.tensor,
    num_columns: tl.tensor,
    dtype: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """weight[columns, step ..]^T without its scale, the scale, and the least that is added. Two
    halves where a byte holds two codes; twice the same otherwise."""
    HALVES: tl.constexpr = KIND == "int4" or KIND == "int4_least" or KIND == "fp4"
    width = num_columns // 2 if HALVES else num_columns
    code_row = codes + columns.to(tl.int64)[None, :] * width
    at_scale = columns // ROWS_PER_SCALE * tl.cdiv(num_columns, GROUP) + step // GROUP
    if HALVES:
        half = tl.arange(0, GROUP // 2)
        packed = tl.load(code_row + (step // 2 + half)[:, None], eviction_policy="evict_first")
        if KIND == "int4":
            zero = tl.load(zeros + at_scale)[None, :]
            first, second = codes_less_zero(packed, zero, dtype)
        elif KIND == "int4_least":
            first, second = codes_less_zero(packed, (columns * 0)[None, :], dtype)
        else:
            first = exact(doubled_e2m1(packed & 15), dtype)
            second = exact(doubled_e2m1(packed >> 4), dtype)
    else:
        k = step + tl.arange(0, BLOCK_K)
        if EVEN_K:
            first = tl.load(code_row + k[:, None], eviction_policy="evict_first")
        else:
            first = tl.load(code_row + k[:, None], mask=(k < num_columns)[:, None], other=0.0)
        if KIND != "dense":
            first = byte_value(first, KIND, dtype)
        second = first
    if KIND == "dense":
        scale = at_scale
    else:
        scale = tl.load(scales + at_scale)
        if KIND == "fp4":
            scale = e8m0_value(scale) * 0.5
        scale = scale.to(tl.float32)[None, :]
    least = scale
    if KIND == "int4_least":
        least = tl.load(zeros + at_scale).to(tl.float32)[None, :]
    return first, second, scale, least


@jit
def x_tiles(
    x: tl.tensor,
    rows: tl.tensor,
    step: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """x[rows, step ..] in the two halves of a weight_tile."""
    is_row = (rows < num_rows)[:, None]
    x_row = x + rows[:, None] * num_columns
    if KIND == "int4" or KIND == "int4_least" or KIND == "fp4":
        k = step + tl.arange(0, GROUP // 2)
        first = tl.load(x_row + k[None, :], mask=is_row, other=0.0)
        second = tl.load(x_row + (k + GROUP // 2)[None, :], mask=is_row, other=0.0)
    else:
        k = step + tl.arange(0, BLOCK_K)
        is_read = is_row if EVEN_K else is_row & (k < num_columns)[None, :]
        first = tl.load(x_row + k[None, :], mask=is_read, other=0.0)
        second = first
    return first, second


@jit
def tile_product(
    x_first: tl.tensor,
    x_second: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    scale: tl.tensor,
    least: tl.tensor,
    total: tl.tensor,
    KIND: tl.constexpr,
) -> tl.tensor:
    """total [16, BLOCK_N] + x_tiles times a weight_tile. A row of x is added up as a product with
    ones, whose order is that of every product."""
    if KIND == "dense":
        return product(x_first, first, total)
    part = product(x_first, first, tl.zeros_like(total))
    if KIND == "int4" or KIND == "int4_least" or KIND == "fp4":
        part = product(x_second, second, part)
    if KIND == "int4_least":
        ones = tl.full(first.shape, 1.0, first.dtype)
        sums = product(x_second, ones, product(x_first, ones, tl.zeros_like(total)))
        total += sums * least
    return total + part * scale


@jit
def silu(x: tl.tensor) -> tl.tensor:
    return x / (1.0 + tl.exp(-x))


@jit
def touch_weights(
    codes: tl.tensor,
    columns: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    num_columns: tl.tensor,
    KIND: tl.constexpr,
    LINES: tl.constexpr,
) -> None:
    """The first lines of what a program will read, into the L2."""
    PER_BYTE: tl.constexpr = 2 if KIND == "int4" or KIND == "int4_least" or KIND == "fp4" else 1
    PER_LINE: tl.constexpr = LINE_BYTES * 8 // codes.dtype.element_ty.primitive_bitwidth
    at = tl.minimum(begin // PER_BYTE + tl.arange(0, LINES) * PER_LINE, end // PER_BYTE - 1)
    touch(codes + columns.to(tl.int64)[:, None] * (num_columns // PER_BYTE) + at[None, :])


@jit
def part_of(
    split: tl.tensor, num_columns: tl.tensor, NUM_SPLITS: tl.constexpr, BLOCK_K: tl.constexpr
) -> tl.tensor:
    """The columns of K that a split multiplies: the first one and the end."""
    steps = tl.cdiv(tl.cdiv(num_columns, BLOCK_K), NUM_SPLITS)
    begin = split * steps * BLOCK_K
    return begin, tl.minimum(begin + steps * BLOCK_K, num_columns)


@jit
def touch_part(
    block: tl.tensor,
    split: tl.tensor,
    codes: tl.tensor,
    num_outputs: tl.tensor,
    num_columns: tl.tensor,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LINES: tl.constexpr,
) -> None:
    """What skinny_part of the same block and split reads first, into the L2."""
    columns = tl.minimum(block * BLOCK_N + tl.arange(0, BLOCK_N), num_outputs - 1)
    begin, end = part_of(split, num_columns, NUM_SPLITS, BLOCK_K)
    touch_weights(codes, columns, begin, end, num_columns, KIND, LINES)
    if GATED:
        touch_weights(codes, columns + num_outputs, begin, end, num_columns, KIND, LINES)


@jit
def skinny_kernel(
    x: tl.tensor,  # [num_rows, num_columns]
    codes: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,  # or leasts
    bias: tl.tensor,
    residual: tl.tensor,  # as out
    parts: tl.tensor,  # [NUM_SPLITS, num_rows, all outputs]
    counters: tl.tensor,
    out: tl.tensor,  # [num_rows, num_outputs]
    num_rows: tl.tensor,
    num_outputs: tl.tensor,
    num_columns: tl.tensor,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    EVEN_K: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    NUM_TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
    LINES: tl.constexpr,
) -> None:
    """A program for each block of outputs and part of K."""
    block, split = tl.program_id(0), tl.program_id(1)
    if DEPENDENT:
        touch_part(
            block, split, codes, num_outputs, num_columns,
            KIND, GATED, NUM_SPLITS, BLOCK_N, BLOCK_K, LINES,
        )  # fmt: skip
    wait_for_previous(DEPENDENT)
    skinny_part(
        block, split, x, codes, scales, zeros, bias, residual, parts, counters, out,
        num_rows, num_outputs, num_columns, KIND, GROUP, ROWS_PER_SCALE, GATED, HAS_BIAS,
        HAS_RESIDUAL, EVEN_K, NUM_SPLITS, NUM_TILES, BLOCK_N, BLOCK_K,
    )  # fmt: skip


@jit
def skinny_part(
    block: tl.tensor,
    split: tl.tensor,
    x: tl.tensor,  # [num_rows, num_columns]
    codes: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,  # or leasts
    bias: tl.tensor,
    residual: tl.tensor,  # as out
    parts: tl.tensor,  # [NUM_SPLITS, num_rows, all outputs]
    counters: tl.tensor,
    out: tl.tensor,  # [num_rows, num_outputs]
    num_rows: tl.tensor,
    num_outputs: tl.tensor,
    num_columns: tl.tensor,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    EVEN_K: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    NUM_TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """All rows, in up to four tiles of 16, and BLOCK_N outputs over one part of K; the last program
    of some outputs adds their parts and finishes them.

    A tile of weights is read and unpacked once for all of them. Each tile of rows has a product of
    its own, so that a row is summed alike in all.
    """
    outputs = block * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.minimum(outputs, num_outputs - 1)
    begin, end = part_of(split, num_columns, NUM_SPLITS, BLOCK_K)
    rows = tl.arange(0, ROW_TILE)
    dtype: tl.constexpr = x.dtype.element_ty
    none = tl.zeros((ROW_TILE, BLOCK_N), tl.float32)
    total_0, total_1, total_2, total_3 = none, none, none, none
    up_0, up_1, up_2, up_3 = none, none, none, none
    for step in range(begin, end, BLOCK_K):
        first, second, scale, least = weight_tile(
            codes, scales, zeros, columns, step, num_columns, dtype,
            KIND, GROUP, ROWS_PER_SCALE, EVEN_K, BLOCK_K,
        )  # fmt: skip
        if GATED:
            up_first, up_second, up_scale, up_least = weight_tile(
                codes, scales, zeros, columns + num_outputs, step, num_columns, dtype,
                KIND, GROUP, ROWS_PER_SCALE, EVEN_K, BLOCK_K,
            )  # fmt: skip
        low, high = x_tiles(
            x, rows, step, num_rows, num_columns,
            KIND, GROUP, EVEN_K, BLOCK_K,
        )  # fmt: skip
        total_0 = tile_product(low, high, first, second, scale, least, total_0, KIND)
        if GATED:
            up_0 = tile_product(low, high, up_first, up_second, up_scale, up_least, up_0, KIND)
        if NUM_TILES > 1:
            low, high = x_tiles(
                x, rows + ROW_TILE, step, num_rows, num_columns,
                KIND, GROUP, EVEN_K, BLOCK_K,
            )  # fmt: skip
            total_1 = tile_product(low, high, first, second, scale, least, total_1, KIND)
            if GATED:
                up_1 = tile_product(low, high, up_first, up_second, up_scale, up_least, up_1, KIND)
        if NUM_TILES > 2:
            low, high = x_tiles(
                x, rows + 2 * ROW_TILE, step, num_rows, num_columns,
                KIND, GROUP, EVEN_K, BLOCK_K,
            )  # fmt: skip
            total_2 = tile_product(low, high, first, second, scale, least, total_2, KIND)
            if GATED:
                up_2 = tile_product(low, high, up_first, up_second, up_scale, up_least, up_2, KIND)
            low, high = x_tiles(
                x, rows + 3 * ROW_TILE, step, num_rows, num_columns,
                KIND, GROUP, EVEN_K, BLOCK_K,
            )  # fmt: skip
            total_3 = tile_product(low, high, first, second, scale, least, total_3, KIND)
            if GATED:
                up_3 = tile_product(low, high, up_first, up_second, up_scale, up_least, up_3, KIND)

    is_last = True
    if NUM_SPLITS > 1:
        width = num_outputs * 2 if GATED else num_outputs
        part = parts + (split * num_rows).to(tl.int64) * width
        store_part(part, total_0, up_0, rows, outputs, num_rows, num_outputs, GATED)
        if NUM_TILES > 1:
            store_part(part, total_1, up_1, rows + ROW_TILE, outputs, num_rows, num_outputs, GATED)
        if NUM_TILES > 2:
            store_part(
                part, total_2, up_2, rows + 2 * ROW_TILE, outputs, num_rows, num_outputs, GATED
            )
            store_part(
                part, total_3, up_3, rows + 3 * ROW_TILE, outputs, num_rows, num_outputs, GATED
            )
        is_last = arrives_last(counters + block, NUM_SPLITS)
    if is_last:
        finish_tile(
            total_0, up_0, parts, bias, residual, out, rows, outputs, num_rows,
            num_outputs, GATED, HAS_BIAS, HAS_RESIDUAL, NUM_SPLITS,
        )  # fmt: skip
        if NUM_TILES > 1:
            finish_tile(
                total_1, up_1, parts, bias, residual, out, rows + ROW_TILE, outputs,
                num_rows, num_outputs, GATED, HAS_BIAS, HAS_RESIDUAL, NUM_SPLITS,
            )  # fmt: skip
        if NUM_TILES > 2:
            finish_tile(
                total_2, up_2, parts, bias, residual, out, rows + 2 * ROW_TILE, outputs,
                num_rows, num_outputs, GATED, HAS_BIAS, HAS_RESIDUAL, NUM_SPLITS,
            )  # fmt: skip
            finish_tile(
                total_3, up_3, parts, bias, residual, out, rows + 3 * ROW_TILE, outputs,
                num_rows, num_outputs, GATED, HAS_BIAS, HAS_RESIDUAL, NUM_SPLITS,
            )  # fmt: skip


@jit
def store_part(
    part: tl.tensor,
    total: tl.tensor,
    up_total: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    num_rows: tl.tensor,
    num_outputs: tl.tensor,
    GATED: tl.constexpr,
) -> None:
    width = num_outputs * 2 if GATED else num_outputs
    is_kept = (rows < num_rows)[:, None] & (outputs < num_outputs)[None, :]
    at = part + rows[:, None].to(tl.int64) * width + outputs[None, :]
    tl.store(at, total, mask=is_kept)
    if GATED:
        tl.store(at + num_outputs, up_total, mask=is_kept)


@jit
def finish_tile(
    total: tl.tensor,
    up_total: tl.tensor,
    parts: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    num_rows: tl.tensor,
    num_outputs: tl.tensor,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
) -> None:
    """16 rows: the parts of K in order, bias, activation, rounding, and the residual stream."""
    columns = tl.minimum(outputs, num_outputs - 1)
    is_kept = (rows < num_rows)[:, None] & (outputs < num_outputs)[None, :]
    if NUM_SPLITS > 1:
        width = num_outputs * 2 if GATED else num_outputs
        total = tl.zeros_like(total)
        up_total = tl.zeros_like(up_total)
        stride = (tl.zeros((1, 1), tl.int64) + num_rows) * width  # a single row is no tensor
        at = parts + rows[:, None].to(tl.int64) * width + outputs[None, :]
        for _ in tl.static_range(NUM_SPLITS):
            total += tl.load(at, mask=is_kept, other=0.0, cache_modifier=".cg")
            if GATED:
                up = at + num_outputs
                up_total += tl.load(up, mask=is_kept, other=0.0, cache_modifier=".cg")
            at += stride
    if HAS_BIAS:
        total += tl.load(bias + columns).to(tl.float32)[None, :]
        if GATED:
            up_total += tl.load(bias + columns + num_outputs).to(tl.float32)[None, :]
    if GATED:
        total = silu(total) * up_total
    rounded = round_to(total, out.dtype.element_ty)
    at = rows[:, None].to(tl.int64) * num_outputs + outputs[None, :]
    if HAS_RESIDUAL:
        before = tl.load(residual + at, mask=is_kept, other=0.0).to(tl.float32)
        rounded = round_to(rounded.to(tl.float32) + before, out.dtype.element_ty)
    tl.store(out + at, rounded, mask=is_kept)
