"""Rows of float32 times weights in the bytes of their file, in the order of cpu/float_matrix.

A program has BLOCK outputs of up to ROWS rows; lane i of 16 adds columns i, i + 16, ... of a block
of the weight by fma, then the block by fma with its scale. So a row has the bits of the CPU's. Of
few rows several blocks are under way at a time, so that enough bytes are; they are then added in
order.
"""

import torch

from dspark_kernels.backend import jit, next_power_of_2, tl
from dspark_kernels.builds import KernelBuild
from dspark_kernels.cpu.file_weight import FileWeight
from dspark_kernels.deepseek_v4.exact_math import LANES, UNFUSED, fma, tree_sum

MOST_ROWS = 8  # of a program
OUTPUTS, OUTPUTS_IN_BLOCKS = 16, 4  # of a program, without and with scales
MOST_BLOCKS = 8  # at once, of one row
WARPS = 4
FP8_EXPONENT = tl.constexpr(2.0**120)  # bits of e4m3 in a float32's place are that much smaller
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "fp8": torch.uint8}


def multiply_rows(
    x: torch.Tensor, weight: FileWeight, out: torch.Tensor, groups: int = 1
) -> torch.Tensor:
    """x float32 [M, groups * K], weight [groups * n, K] -> out [M, groups * n]; rows of x and out
    may be further apart. Group g of the outputs meets columns g K to (g + 1) K."""
    num_rows, (num_outputs, columns) = len(x), weight.shape
    width = weight.width or columns
    group_outputs = num_outputs // groups
    outputs = OUTPUTS if weight.scales is None else OUTPUTS_IN_BLOCKS
    block = min(outputs, group_outputs & -group_outputs)
    rows = min(MOST_ROWS, next_power_of_2(max(num_rows, 1)))
    codes = weight.codes.view(DTYPES[weight.kind])
    grid = (-(-num_outputs // block), -(-num_rows // rows))
    file_matrix_kernel[grid](
        x,
        codes,
        weight.scales,
        out,
        num_rows,
        x.stride(0),
        out.stride(0),
        num_outputs,
        group_outputs,
        COLUMNS=columns,
        WIDTH=width,
        HEIGHT=weight.height,
        KIND=weight.kind,
        BLOCK=block,
        ROWS=rows,
        BLOCKS_AT_ONCE=_blocks_at_once(columns // width, rows),
        num_warps=WARPS,
        **UNFUSED,
    )
    return out


def _blocks_at_once(blocks: int, rows: int) -> int:
    return min(max(1, MOST_BLOCKS // rows), blocks & -blocks)


@jit
def file_matrix_kernel(
    x: tl.tensor,  # [num_rows, groups * COLUMNS]
    codes: tl.tensor,  # [num_outputs, COLUMNS]
    scales: tl.tensor,  # [num_outputs / HEIGHT, COLUMNS / WIDTH]
    out: tl.tensor,  # [num_rows, num_outputs]
    num_rows: tl.tensor,
    x_stride: tl.tensor,
    out_stride: tl.tensor,
    num_outputs: tl.tensor,
    group_outputs: tl.tensor,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEIGHT: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS_AT_ONCE: tl.constexpr,
) -> None:
    first = tl.program_id(0) * BLOCK
    output, row = first + tl.arange(0, BLOCK), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    is_output, is_row = output < num_outputs, row < num_rows
    lane = tl.arange(0, LANES)
    group_at = (first // group_outputs).to(tl.int64) * COLUMNS
    rows = x + row.to(tl.int64)[:, None] * x_stride + group_at + lane[None, :]
    weights = codes + output.to(tl.int64)[:, None] * COLUMNS + lane[None, :]
    total = tl.zeros((ROWS, BLOCK, LANES), tl.float32)
    CHUNKS: tl.constexpr = WIDTH // LANES
    BLOCKS: tl.constexpr = COLUMNS // WIDTH
    if KIND == "fp8":
        factors = scales + (output // HEIGHT).to(tl.int64) * BLOCKS
        number = tl.arange(0, BLOCKS_AT_ONCE)
        some_rows = rows[:, None, :] + number[None, :, None] * WIDTH
        some_weights = weights[:, None, :] + number[None, :, None] * WIDTH
        has_row, has_output = is_row[:, None, None], is_output[:, None, None]
        for begin in range(0, BLOCKS, BLOCKS_AT_ONCE):
            parts = tl.zeros((ROWS, BLOCK, BLOCKS_AT_ONCE, LANES), tl.float32)
            for chunk in tl.static_range(CHUNKS):
                at = begin * WIDTH + chunk * LANES
                values = e4m3(tl.load(some_weights + at, mask=has_output, other=0))
                x_values = tl.load(some_rows + at, mask=has_row, other=0.0)
                parts = fma(x_values[:, None, :, :], values[None, :, :, :], parts)
            place = factors[:, None] + begin + number[None, :]
            exponent = tl.load(place, mask=is_output[:, None], other=127).to(tl.int32)
            factor = (exponent << 23).to(tl.float32, bitcast=True)
            for index in tl.static_range(BLOCKS_AT_ONCE):
                is_it = number == index  # exact: the others add nothing
                part = tl.sum(tl.where(is_it[None, None, :, None], parts, 0.0), axis=2)
                own = tl.sum(tl.where(is_it[None, :], factor, 0.0), axis=1)
                total = fma(part, own[None, :, None], total)
    else:
        AT_ONCE: tl.constexpr = 8 if CHUNKS % 8 == 0 else (4 if CHUNKS % 4 == 0 else 1)
        for begin in range(0, CHUNKS, AT_ONCE):
            for chunk in tl.static_range(AT_ONCE):
                at = (begin + chunk) * LANES
                stored = tl.load(weights + at, mask=is_output[:, None], other=0)
                x_values = tl.load(rows + at, mask=is_row[:, None], other=0.0)
                values = stored.to(tl.float32)
                total = fma(x_values[:, None, :], values[None, :, :], total)
    sums = tl.reshape(tree_sum(total, ROWS * BLOCK), (ROWS, BLOCK))
    target = out + row.to(tl.int64)[:, None] * out_stride + output[None, :]
    tl.store(target, sums, mask=is_row[:, None] & is_output[None, :])


@jit
def e4m3(codes: tl.tensor) -> tl.tensor:
    """Values of bytes, exactly."""
    bits = codes.to(tl.int32)
    bits = ((bits & 0x80) << 24) | ((bits & 0x7F) << 20)
    return bits.to(tl.float32, bitcast=True) * FP8_EXPONENT


def builds() -> list[KernelBuild]:
    shapes = (
        ("fp8", 4096, 128, "u8", 1),
        ("fp8", 4096, 128, "u8", 8),
        ("fp8", 1024, 128, "u8", 4),
        ("bfloat16", 4096, 4096, "bf16", 8),
        ("float32", 16384, 16384, "fp32", 8),
    )
    kernels = []
    for kind, columns, width, element, rows in shapes:
        signature = {"x": "*fp32", "codes": f"*{element}", "out": "*fp32"}
        signature |= {"num_rows": "i32", "x_stride": "i32", "out_stride": "i32"}
        signature |= {"num_outputs": "i32", "group_outputs": "i32"}
        constexprs: dict[str, int | str | None] = {"COLUMNS": columns, "WIDTH": width}
        constexprs["HEIGHT"] = 128 if kind == "fp8" else 1
        constexprs |= {"KIND": kind, "ROWS": rows}
        constexprs["BLOCKS_AT_ONCE"] = _blocks_at_once(columns // width, rows)
        constexprs["BLOCK"] = OUTPUTS_IN_BLOCKS if kind == "fp8" else OUTPUTS
        if kind == "fp8":
            signature["scales"] = "*u8"
        else:
            constexprs["scales"] = None
        name = f"v4 matrix {kind} {columns} x{rows}"
        build = KernelBuild(
            name, file_matrix_kernel, signature, constexprs, num_warps=WARPS, fuses=False
        )
        kernels.append(build)
    return kernels
