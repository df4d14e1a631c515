"""A linear layer for the few rows of a decoding step: its cost is reading the weights' bytes.

The kernel works on tiles of 16 rows and adds along K in a fixed order, in a fixed number of parts:
a row's result depends neither on the number of rows nor on their content.
"""

from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F

from dspark_kernels.backend import next_power_of_2, triton, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.dequantized_linear import dequantized_linear, kernel_codes
from dspark_kernels.quantized_weight import NIBBLES, QuantizedWeight
from dspark_kernels.skinny_linear_kernels import ROW_TILE, combine_kernel, skinny_kernel
from dspark_kernels.swiglu import swiglu

MAX_SKINNY_ROWS = 64
COMBINE_COLUMNS = 256
DENSE_GROUP = 128  # no scales: one number for all widths, so that all share a kernel


def skinny_linear_reference(
    x: torch.Tensor,
    weight: torch.Tensor | QuantizedWeight,
    bias: torch.Tensor | None = None,
    *,
    gated: bool = False,
) -> torch.Tensor:
    """x [M, K], weight [N, K] -> [M, N]; gated: gate rows above up rows -> SwiGLU [M, N / 2]."""
    if isinstance(weight, QuantizedWeight):
        weight = weight.dequantized(x.dtype)
    out = F.linear(x, weight, bias)
    return swiglu(out) if gated else out


def skinny_linear(
    x: torch.Tensor,
    weight: torch.Tensor | QuantizedWeight,
    bias: torch.Tensor | None = None,
    *,
    gated: bool = False,
) -> torch.Tensor:
    """As skinny_linear_reference; a kernel for up to 64 rows, and one that unpacks for more."""
    codes = weight.codes if isinstance(weight, QuantizedWeight) else weight
    if x.shape[0] < 1 or not codes.is_contiguous() or not use_triton(x):
        return skinny_linear_reference(x, weight, bias, gated=gated)
    if x.shape[0] <= MAX_SKINNY_ROWS:
        return _launch(x, weight, bias, gated)
    if isinstance(weight, QuantizedWeight):
        return dequantized_linear(x, weight, bias, gated=gated)
    return skinny_linear_reference(x, weight, bias, gated=gated)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a matrix is tiled; by its size alone, so that every pass sums in the same order."""

    block_n: int
    block_k: int
    num_splits: int
    max_registers: int = 255
    num_stages: int = 3

    def registers(self, num_tiles: int) -> int:
        """The most a thread may have, with that many tiles of 16 rows."""
        return self.max_registers if num_tiles == 1 else 255

    def outputs(self, num_tiles: int, *, gated: bool) -> int:
        """Of one program: gate and up of several tiles leave registers for half as many, unless
        weights are used as they are read. Which sums a program makes does not change them."""
        is_tight = gated and num_tiles > 1 and self.max_registers == 255
        return self.block_n // 2 if is_tight else self.block_n

    @classmethod
    def of(
        cls, num_outputs: int, num_columns: int, kind: str, group: int, element: int
    ) -> "Tiling":
        """group: columns that share a scale; element: bytes of one number of x."""
        block_n = 64
        block_k = group if kind in NIBBLES else min(group, 128 if element == 2 else 32)
        num_steps, num_splits = -(-num_columns // block_k), 1
        # enough programs to fill a large card, each with enough steps to fill its pipeline
        while -(-num_outputs // block_n) * num_splits < 512 and num_steps >= 8 * num_splits:
            num_splits *= 2
        # stated, because ptxas otherwise targets fewer than it needs; 128 leave room for four
        # blocks, but not for the masks of a last step that is not full
        is_plain = kind == "dense" and element == 2 and num_columns % block_k == 0
        max_registers = 128 if is_plain else 255
        return cls(block_n, block_k, num_splits, max_registers)


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor | QuantizedWeight,
    bias: torch.Tensor | None,
    gated: bool,
) -> torch.Tensor:
    quantized = weight if isinstance(weight, QuantizedWeight) else None
    if quantized is not None and quantized.order is not None:
        x = x[:, quantized.order]
    x = x.contiguous()
    (num_rows, num_columns), num_weight_rows = x.shape, weight.shape[0]
    num_outputs = num_weight_rows // 2 if gated else num_weight_rows
    codes, scales, kind, group = weight, weight, "dense", DENSE_GROUP
    if quantized is not None:
        codes, scales, kind, group = kernel_codes(quantized, x.device)
    tiling = Tiling.of(num_outputs, num_columns, kind, group, x.element_size())
    out = x.new_empty(num_rows, num_outputs)
    is_split = tiling.num_splits > 1
    parts = out
    if is_split:
        shape = (tiling.num_splits, num_rows, num_weight_rows)
        parts = torch.empty(shape, device=x.device, dtype=torch.float32)
    num_tiles = next_power_of_2(triton.cdiv(num_rows, ROW_TILE.value))
    block_n = tiling.outputs(num_tiles, gated=gated)
    grid = (triton.cdiv(num_outputs, block_n), tiling.num_splits)
    skinny_kernel[grid](
        x,
        codes,
        scales,
        codes if quantized is None or quantized.zeros is None else quantized.zeros,
        x if bias is None else bias,
        parts,
        num_rows,
        num_outputs,
        num_columns,
        KIND=kind,
        GROUP=group,
        ROWS_PER_SCALE=1 if quantized is None else quantized.rows_per_scale,
        GATED=gated,
        HAS_BIAS=bias is not None,
        IS_SPLIT=is_split,
        EVEN_K=num_columns % tiling.block_k == 0,
        NUM_SPLITS=tiling.num_splits,
        NUM_TILES=num_tiles,
        BLOCK_N=block_n,
        BLOCK_K=tiling.block_k,
        num_stages=tiling.num_stages,
        maxnreg=tiling.registers(num_tiles),
    )
    if is_split:
        combine_kernel[(num_rows, triton.cdiv(num_outputs, COMBINE_COLUMNS))](
            parts,
            x if bias is None else bias,
            out,
            num_rows,
            num_outputs,
            NUM_SPLITS=tiling.num_splits,
            GATED=gated,
            HAS_BIAS=bias is not None,
            BLOCK_N=COMBINE_COLUMNS,
        )
    return out


def builds() -> list[KernelBuild]:
    sizes = dict.fromkeys(("num_rows", "num_outputs", "num_columns"), "i32")
    formats = [
        # element of x, codes, scales, kind, group, rows_per_scale, least capability
        ("bf16", "*bf16", "*bf16", "dense", DENSE_GROUP, 1, 80),
        ("fp16", "*fp16", "*fp16", "dense", DENSE_GROUP, 1, 80),
        ("fp32", "*fp32", "*fp32", "dense", DENSE_GROUP, 1, 80),
        ("bf16", "*i8", "*bf16", "int8", 4096, 1, 80),
        ("bf16", "*i8", "*bf16", "int8", 128, 1, 80),
        ("bf16", "*u8", "*bf16", "int4", 128, 1, 80),
        ("bf16", "*u8", "*bf16", "int4", 32, 1, 80),
        ("fp16", "*u8", "*fp16", "int4", 128, 1, 80),
        ("bf16", "*u8", "*u8", "fp4", 32, 1, 80),
        ("fp16", "*u8", "*u8", "fp4", 32, 1, 80),
        ("bf16", "*fp8e4nv", "*fp32", "fp8", 128, 128, 89),
        ("bf16", "*u8", "*fp32", "fp8_bits", 128, 128, 80),
    ]
    kernels = []
    for x, codes, scales, kind, group, rows_per_scale, least in formats:
        tiling = Tiling.of(4096, 4096, kind, group, 4 if x == "fp32" else 2)
        many = (1, 4) if x != "fp16" and group == 128 else (1,)
        for (gated, is_split), num_tiles in product(((False, True), (True, False)), many):
            out = "*fp32" if is_split else f"*{x}"
            rows = f" {16 * num_tiles} rows" if num_tiles > 1 else ""
            kernels.append(
                KernelBuild(
                    f"skinny {x} {kind} {group}{' gated' if gated else ''}{rows}",
                    skinny_kernel,
                    {"x": f"*{x}", "codes": codes, "scales": scales, "zeros": "*u8"}
                    | {"bias": f"*{x}", "out": out}
                    | sizes,
                    {
                        "KIND": kind,
                        "GROUP": group,
                        "ROWS_PER_SCALE": rows_per_scale,
                        "GATED": gated,
                        "HAS_BIAS": False,
                        "IS_SPLIT": is_split,
                        "EVEN_K": True,
                        "NUM_SPLITS": tiling.num_splits if is_split else 1,
                        "NUM_TILES": num_tiles,
                        "BLOCK_N": tiling.outputs(num_tiles, gated=gated),
                        "BLOCK_K": tiling.block_k,
                    },
                    num_stages=tiling.num_stages,
                    max_registers=tiling.registers(num_tiles),
                    min_capability=least,
                )
            )
    combine = {"parts": "*fp32", "bias": "*bf16", "out": "*bf16"}
    combine |= {"num_rows": "i32", "num_outputs": "i32"}
    constants = {"NUM_SPLITS": 8, "GATED": True, "HAS_BIAS": True, "BLOCK_N": COMBINE_COLUMNS}
    return [*kernels, KernelBuild("skinny combine", combine_kernel, combine, constants)]
