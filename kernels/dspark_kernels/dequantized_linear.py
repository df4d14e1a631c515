"""A product of many rows, such as a prompt's, with a quantized weight.

Codes become numbers once for all rows, in slices of a buffer that is small beside the weight, and
PyTorch multiplies with them.
"""

import torch
import torch.nn.functional as F

from dspark_kernels.backend import cuda_capability, jit, next_power_of_2, tl, triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.quantized_weight import NIBBLES, QuantizedWeight
from dspark_kernels.rounding import round_to
from dspark_kernels.skinny_linear_kernels import byte_value, doubled_e2m1, e8m0_value
from dspark_kernels.swiglu import swiglu

NATIVE_FP8_CAPABILITY = (8, 9)
SLICE_NUMBERS = 1 << 25  # 64 MiB in bf16
SLICE_ROWS = 128  # a multiple of this: rows that share a scale stay together
BLOCK_ROWS = 32
BLOCK_COLUMNS = 128


def kernel_codes(
    weight: QuantizedWeight, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, str, int]:
    """Codes and scales that kernels read, how they read them, and the columns that share a
    scale."""
    codes, scales, group = weight.codes, weight.scales, weight.group
    if weight.leasts is not None:
        return codes, scales, "int4_least", group
    if weight.kind == "fp4":
        return codes, scales.view(torch.uint8), "fp4", group
    if weight.kind != "int4" and group >= weight.shape[1]:
        group = max(group, 128)
    if weight.kind == "fp8" and not _converts_fp8(device):
        return codes.view(torch.uint8), scales, "fp8_bits", group
    return codes, scales, weight.kind, group


def _converts_fp8(device: torch.device) -> bool:
    """Whether its instructions do; the interpreter's do."""
    return device.type != "cuda" or cuda_capability(device) >= NATIVE_FP8_CAPABILITY


def dequantized_linear(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, *, gated: bool
) -> torch.Tensor:
    """As skinny_linear_reference, for any number of rows."""
    if weight.order is not None:
        x = x[:, weight.order]
    num_outputs, num_columns = weight.shape
    out = x.new_empty(x.shape[0], num_outputs)
    size = max(1, SLICE_NUMBERS // (num_columns * SLICE_ROWS)) * SLICE_ROWS
    buffer = x.new_empty(min(size, num_outputs), num_columns)
    for first in range(0, num_outputs, size):
        end = min(first + size, num_outputs)
        dequantize_rows(weight, first, buffer[: end - first])
        part = None if bias is None else bias[first:end]
        out[:, first:end] = F.linear(x, buffer[: end - first], part)
    return swiglu(out) if gated else out


def dequantize_rows(weight: QuantizedWeight, first: int, out: torch.Tensor) -> None:
    """Rows `first` on of weight [N, K] into out [n, K], in the order of the codes."""
    codes, scales, kind, group = kernel_codes(weight, out.device)
    num_rows, num_columns = out.shape
    block = group if weight.kind in NIBBLES else min(BLOCK_COLUMNS, next_power_of_2(group))
    grid = (triton.cdiv(num_rows, BLOCK_ROWS), triton.cdiv(num_columns, block))
    dequantize_kernel[grid](
        codes,
        scales,
        weight.zeros if weight.leasts is None else weight.leasts,
        out,
        first,
        num_rows,
        num_columns,
        KIND=kind,
        GROUP=group,
        ROWS_PER_SCALE=weight.rows_per_scale,
        BLOCK_N=BLOCK_ROWS,
        BLOCK_K=block,
    )


@jit
def dequantize_kernel(
    codes: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,  # or leasts
    out: tl.tensor,  # [num_rows, num_columns]
    first_row: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """A tile of a weight as numbers: code less zero, times scale, plus the least, in float32 and
    rounded once."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    step = tl.program_id(1) * BLOCK_K
    is_row = (row < num_rows)[:, None]
    of_weight = (first_row + tl.minimum(row, num_rows - 1)).to(tl.int64)
    at_scale = of_weight // ROWS_PER_SCALE * tl.cdiv(num_columns, GROUP) + step // GROUP
    scale = tl.load(scales + at_scale)
    if KIND == "fp4":
        scale = e8m0_value(scale) * 0.5
    scale = scale.to(tl.float32)[:, None]
    dtype: tl.constexpr = out.dtype.element_ty
    at = out + row.to(tl.int64)[:, None] * num_columns + step
    if KIND == "int4" or KIND == "int4_least" or KIND == "fp4":
        half = tl.arange(0, BLOCK_K // 2)[None, :]
        packed = tl.load(codes + of_weight[:, None] * (num_columns // 2) + step // 2 + half)
        if KIND == "int4":
            zero = tl.load(zeros + at_scale).to(tl.int8)[:, None]
            low, high = (packed & 15).to(tl.int8) - zero, (packed >> 4).to(tl.int8) - zero
        elif KIND == "int4_least":
            low, high = packed & 15, packed >> 4
        else:
            low, high = doubled_e2m1(packed & 15), doubled_e2m1(packed >> 4)
        low, high = low.to(tl.float32) * scale, high.to(tl.float32) * scale
        if KIND == "int4_least":
            least = tl.load(zeros + at_scale).to(tl.float32)[:, None]
            low, high = low + least, high + least
        tl.store(at + half, round_to(low, dtype), mask=is_row)
        tl.store(at + BLOCK_K // 2 + half, round_to(high, dtype), mask=is_row)
    else:
        column = tl.arange(0, BLOCK_K)[None, :]
        is_kept = is_row & (step + column < num_columns)
        code = tl.load(codes + of_weight[:, None] * num_columns + step + column, mask=is_kept)
        value = byte_value(code, KIND, tl.float32) * scale
        tl.store(at + column, round_to(value, dtype), mask=is_kept)


def builds() -> list[KernelBuild]:
    formats = [
        # codes, scales, kind, group, rows_per_scale, least capability
        ("*i8", "*bf16", "int8", 128, 1, 80),
        ("*u8", "*bf16", "int4", 128, 1, 80),
        ("*u8", "*fp16", "int4_least", 32, 1, 80),
        ("*u8", "*fp32", "int4_least", 32, 1, 80),
        ("*u8", "*u8", "fp4", 32, 1, 80),
        ("*fp8e4nv", "*fp32", "fp8", 128, 128, 89),
        ("*u8", "*fp32", "fp8_bits", 128, 128, 80),
    ]
    return [
        KernelBuild(
            f"dequantize {kind} {group} {scales}",
            dequantize_kernel,
            {"codes": codes, "scales": scales, "out": "*bf16"}
            | {"zeros": scales if kind == "int4_least" else "*u8"}
            | dict.fromkeys(("first_row", "num_rows", "num_columns"), "i32"),
            {"KIND": kind, "GROUP": group, "ROWS_PER_SCALE": rows_per_scale}
            | {"BLOCK_N": BLOCK_ROWS, "BLOCK_K": min(group, BLOCK_COLUMNS)},
            min_capability=least,
        )
        for codes, scales, kind, group, rows_per_scale, least in formats
    ]
