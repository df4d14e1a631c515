"""The kernels of skinny_linear.py: tiles of a product over parts of K, and their sum in order."""

from dspark_kernels.backend import jit, tl
from dspark_kernels.rounding import INTERPRETED, product, round_to

ROW_TILE = tl.constexpr(16)  # the least that tl.dot takes


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
    """weight[columns, step ..]^T without its scale, and the scale. Two halves where a byte holds
    two codes; twice the same otherwise."""
    HALVES: tl.constexpr = KIND == "int4" or KIND == "fp4"
    width = num_columns // 2 if HALVES else num_columns
    code_row = codes + columns.to(tl.int64)[None, :] * width
    at_scale = columns // ROWS_PER_SCALE * tl.cdiv(num_columns, GROUP) + step // GROUP
    if HALVES:
        half = tl.arange(0, GROUP // 2)
        packed = tl.load(code_row + (step // 2 + half)[:, None], eviction_policy="evict_first")
        if KIND == "int4":
            zero = tl.load(zeros + at_scale).to(tl.int8)[None, :]
            low, high = (packed & 15).to(tl.int8) - zero, (packed >> 4).to(tl.int8) - zero
        else:
            low, high = doubled_e2m1(packed & 15), doubled_e2m1(packed >> 4)
        first, second = exact(low, dtype), exact(high, dtype)
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
    return first, second, scale


@jit
def tile_product(
    x: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    scale: tl.tensor,
    total: tl.tensor,
    rows: tl.tensor,
    step: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """total [16, BLOCK_N] + x[rows, step ..] times a weight_tile."""
    is_row = (rows < num_rows)[:, None]
    x_row = x + rows[:, None] * num_columns
    if KIND == "int4" or KIND == "fp4":
        half = tl.arange(0, GROUP // 2)
        x_low = tl.load(x_row + (step + half)[None, :], mask=is_row, other=0.0)
        x_high = tl.load(x_row + (step + GROUP // 2 + half)[None, :], mask=is_row, other=0.0)
        part = product(x_low, first, tl.zeros_like(total))
        part = product(x_high, second, part)
    else:
        k = step + tl.arange(0, BLOCK_K)
        is_read = is_row if EVEN_K else is_row & (k < num_columns)[None, :]
        values = tl.load(x_row + k[None, :], mask=is_read, other=0.0)
        if KIND == "dense":
            return product(values, first, total)
        part = product(values, first, tl.zeros_like(total))
    return total + part * scale


@jit
def silu(x: tl.tensor) -> tl.tensor:
    return x / (1.0 + tl.exp(-x))


@jit
def skinny_kernel(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    num_rows: tl.tensor,
    num_outputs: tl.tensor,
    num_columns: tl.tensor,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    EVEN_K: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    NUM_TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """All rows, in up to four tiles of 16, and BLOCK_N outputs over one part of K; out is the parts
    if IS_SPLIT.

    A tile of weights is read and unpacked once for all of them. Each tile of rows has a product of
    its own, so that a row is summed alike in all.
    """
    split = tl.program_id(1)
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.minimum(outputs, num_outputs - 1)
    steps_per_split = tl.cdiv(tl.cdiv(num_columns, BLOCK_K), NUM_SPLITS)
    begin = split * steps_per_split * BLOCK_K
    end = tl.minimum(begin + steps_per_split * BLOCK_K, num_columns)
    rows = tl.arange(0, ROW_TILE)
    dtype: tl.constexpr = x.dtype.element_ty

    none = tl.zeros((ROW_TILE, BLOCK_N), tl.float32)
    total_0, total_1, total_2, total_3 = none, none, none, none
    up_0, up_1, up_2, up_3 = none, none, none, none
    for step in range(begin, end, BLOCK_K):
        first, second, scale = weight_tile(
            codes, scales, zeros, columns, step, num_columns, dtype,
            KIND, GROUP, ROWS_PER_SCALE, EVEN_K, BLOCK_K,
        )  # fmt: skip
        total_0 = tile_product(
            x, first, second, scale, total_0, rows, step, num_rows, num_columns,
            KIND, GROUP, EVEN_K, BLOCK_K,
        )  # fmt: skip
        if NUM_TILES > 1:
            total_1 = tile_product(
                x, first, second, scale, total_1, rows + ROW_TILE, step, num_rows, num_columns,
                KIND, GROUP, EVEN_K, BLOCK_K,
            )  # fmt: skip
        if NUM_TILES > 2:
            total_2 = tile_product(
                x, first, second, scale, total_2, rows + 2 * ROW_TILE, step, num_rows, num_columns,
                KIND, GROUP, EVEN_K, BLOCK_K,
            )  # fmt: skip
            total_3 = tile_product(
                x, first, second, scale, total_3, rows + 3 * ROW_TILE, step, num_rows, num_columns,
                KIND, GROUP, EVEN_K, BLOCK_K,
            )  # fmt: skip
        if GATED:
            first, second, scale = weight_tile(
                codes, scales, zeros, columns + num_outputs, step, num_columns, dtype,
                KIND, GROUP, ROWS_PER_SCALE, EVEN_K, BLOCK_K,
            )  # fmt: skip
            up_0 = tile_product(
                x, first, second, scale, up_0, rows, step, num_rows, num_columns,
                KIND, GROUP, EVEN_K, BLOCK_K,
            )  # fmt: skip
            if NUM_TILES > 1:
                up_1 = tile_product(
                    x, first, second, scale, up_1, rows + ROW_TILE, step, num_rows, num_columns,
                    KIND, GROUP, EVEN_K, BLOCK_K,
                )  # fmt: skip
            if NUM_TILES > 2:
                up_2 = tile_product(
                    x, first, second, scale, up_2, rows + 2 * ROW_TILE, step, num_rows,
                    num_columns, KIND, GROUP, EVEN_K, BLOCK_K,
                )  # fmt: skip
                up_3 = tile_product(
                    x, first, second, scale, up_3, rows + 3 * ROW_TILE, step, num_rows,
                    num_columns, KIND, GROUP, EVEN_K, BLOCK_K,
                )  # fmt: skip

    store_tile(
        total_0, up_0, bias, out, rows, outputs, split, num_rows, num_outputs,
        GATED, HAS_BIAS, IS_SPLIT,
    )  # fmt: skip
    if NUM_TILES > 1:
        store_tile(
            total_1, up_1, bias, out, rows + ROW_TILE, outputs, split, num_rows, num_outputs,
            GATED, HAS_BIAS, IS_SPLIT,
        )  # fmt: skip
    if NUM_TILES > 2:
        store_tile(
            total_2, up_2, bias, out, rows + 2 * ROW_TILE, outputs, split, num_rows, num_outputs,
            GATED, HAS_BIAS, IS_SPLIT,
        )  # fmt: skip
        store_tile(
            total_3, up_3, bias, out, rows + 3 * ROW_TILE, outputs, split, num_rows, num_outputs,
            GATED, HAS_BIAS, IS_SPLIT,
        )  # fmt: skip


@jit
def store_tile(
    total: tl.tensor,
    up_total: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    split: tl.tensor,
    num_rows: tl.tensor,
    num_outputs: tl.tensor,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
) -> None:
    """16 rows of a part as they are, or finished: bias, activation, rounding."""
    columns = tl.minimum(outputs, num_outputs - 1)
    is_kept = (rows < num_rows)[:, None] & (outputs < num_outputs)[None, :]
    if IS_SPLIT:
        width = num_outputs * 2 if GATED else num_outputs
        at = (split * num_rows + rows)[:, None].to(tl.int64) * width + outputs[None, :]
        tl.store(out + at, total, mask=is_kept)
        if GATED:
            tl.store(out + at + num_outputs, up_total, mask=is_kept)
    else:
        if HAS_BIAS:
            total += tl.load(bias + columns).to(tl.float32)[None, :]
            if GATED:
                up_total += tl.load(bias + columns + num_outputs).to(tl.float32)[None, :]
        if GATED:
            total = silu(total) * up_total
        at = rows[:, None].to(tl.int64) * num_outputs + outputs[None, :]
        tl.store(out + at, round_to(total, out.dtype.element_ty), mask=is_kept)


@jit
def combine_kernel(
    parts: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    num_rows: tl.tensor,
    num_outputs: tl.tensor,
    NUM_SPLITS: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """The parts of K in order, then bias and activation."""
    row = tl.program_id(0)
    outputs = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_kept = outputs < num_outputs
    width = num_outputs * 2 if GATED else num_outputs
    total = tl.zeros((BLOCK_N,), tl.float32)
    up_total = tl.zeros((BLOCK_N,), tl.float32)
    for split in tl.static_range(NUM_SPLITS):
        at = parts + (split * num_rows + row).to(tl.int64) * width + outputs
        total += tl.load(at, mask=is_kept, other=0.0)
        if GATED:
            up_total += tl.load(at + num_outputs, mask=is_kept, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + outputs, mask=is_kept, other=0.0).to(tl.float32)
        if GATED:
            up = tl.load(bias + outputs + num_outputs, mask=is_kept, other=0.0)
            up_total += up.to(tl.float32)
    if GATED:
        total = silu(total) * up_total
    at = row.to(tl.int64) * num_outputs + outputs
    tl.store(out + at, round_to(total, out.dtype.element_ty), mask=is_kept)
