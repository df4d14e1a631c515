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
from dspark_kernels.dependent_launch import LINE, launch_options
from dspark_kernels.dequantized_linear import dequantized_linear, kernel_codes
from dspark_kernels.last_arriver import arrival_counters
from dspark_kernels.quantized_weight import NIBBLES, QuantizedWeight
from dspark_kernels.skinny_linear_kernels import ROW_TILE, skinny_kernel
from dspark_kernels.swiglu import swiglu

MAX_SKINNY_ROWS = 64
LEAST_PROGRAMS = 256  # about two for each multiprocessor of a large card
MOST_AT_ONCE = 660  # programs that such a card holds
TOUCHED_BYTES = 25 << 20  # half of its L2, fetched before the kernel in front has ended
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
    if takes_kernel(x, weight):
        return launch(x, weight, bias, gated=gated)
    if isinstance(weight, QuantizedWeight) and _may_run(x, weight):
        return dequantized_linear(x, weight, bias, gated=gated)
    return skinny_linear_reference(x, weight, bias, gated=gated)


def takes_kernel(x: torch.Tensor, weight: torch.Tensor | QuantizedWeight) -> bool:
    """Whether x [M, K] has as many rows as the kernel takes, where it runs."""
    return x.shape[0] <= MAX_SKINNY_ROWS and _may_run(x, weight)


def _may_run(x: torch.Tensor, weight: torch.Tensor | QuantizedWeight) -> bool:
    codes = weight.codes if isinstance(weight, QuantizedWeight) else weight
    return x.shape[0] >= 1 and codes.is_contiguous() and use_triton(x)


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

    def touched_lines(self, num_outputs: int, row_bytes: int, *, gated: bool) -> int:
        """Lines of each row of weights that a program fetches before it may start, a power of two;
        row_bytes: of a whole row of the matrix."""
        programs = min(-(-num_outputs // self.block_n) * self.num_splits, MOST_AT_ONCE)
        rows = programs * self.block_n * (2 if gated else 1)
        lines = min(TOUCHED_BYTES // (rows * LINE), -(-row_bytes // (self.num_splits * LINE)))
        return 1 << (max(lines, 1).bit_length() - 1)

    @classmethod
    def of(
        cls, num_outputs: int, num_columns: int, kind: str, group: int, element: int
    ) -> "Tiling":
        """group: columns that share a scale; element: bytes of one number of x."""
        block_n = 64
        is_halved = kind in (*NIBBLES, "int4_least")
        block_k = group if is_halved else min(group, 128 if element == 2 else 32)
        num_steps, num_splits = -(-num_columns // block_k), 1
        # enough programs to fill a large card, each with enough steps to fill its pipeline
        num_blocks = -(-num_outputs // block_n)
        while num_blocks * num_splits < LEAST_PROGRAMS and num_steps >= 8 * num_splits:
            num_splits *= 2
        # stated, because ptxas otherwise targets fewer than it needs; 128 leave room for four
        # blocks, but not for the masks of a last step that is not full
        is_plain = kind == "dense" and element == 2 and num_columns % block_k == 0
        max_registers = 128 if is_plain else 255
        return cls(block_n, block_k, num_splits, max_registers)


def launch(
    x: torch.Tensor,
    weight: torch.Tensor | QuantizedWeight,
    bias: torch.Tensor | None,
    *,
    gated: bool = False,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """The kernel, for up to 64 rows; residual [M, N] is added to the product once that is rounded,
    as if the two were apart."""
    quantized = weight if isinstance(weight, QuantizedWeight) else None
    if quantized is not None and quantized.order is not None:
        x = x[:, quantized.order]
    x = x.contiguous()
    (num_rows, num_columns), num_weight_rows = x.shape, weight.shape[0]
    num_outputs = num_weight_rows // 2 if gated else num_weight_rows
    if isinstance(weight, QuantizedWeight):
        codes, scales, kind, group = kernel_codes(weight, x.device)
    else:
        codes, scales, kind, group = weight, weight, "dense", DENSE_GROUP
    tiling = Tiling.of(num_outputs, num_columns, kind, group, x.element_size())
    out = x.new_empty(num_rows, num_outputs)
    parts = None
    if tiling.num_splits > 1:
        shape = (tiling.num_splits, num_rows, num_weight_rows)
        parts = torch.empty(shape, device=x.device, dtype=torch.float32)
    num_tiles = next_power_of_2(triton.cdiv(num_rows, ROW_TILE.value))
    block_n = tiling.outputs(num_tiles, gated=gated)
    num_blocks = triton.cdiv(num_outputs, block_n)
    skinny_kernel[(num_blocks, tiling.num_splits)](
        x,
        codes,
        scales,
        None if quantized is None else _offsets(quantized),
        bias,
        None if residual is None else residual.contiguous(),
        parts,
        None if parts is None else arrival_counters(x.device, num_blocks),
        out,
        num_rows,
        num_outputs,
        num_columns,
        KIND=kind,
        GROUP=group,
        ROWS_PER_SCALE=1 if quantized is None else quantized.rows_per_scale,
        GATED=gated,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        EVEN_K=num_columns % tiling.block_k == 0,
        NUM_SPLITS=tiling.num_splits,
        NUM_TILES=num_tiles,
        BLOCK_N=block_n,
        BLOCK_K=tiling.block_k,
        LINES=tiling.touched_lines(num_outputs, codes[0].nbytes, gated=gated),
        num_stages=tiling.num_stages,
        maxnreg=tiling.registers(num_tiles),
        **launch_options(x.device),
    )
    return out


def _offsets(weight: QuantizedWeight) -> torch.Tensor | None:
    return weight.zeros if weight.leasts is None else weight.leasts


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
        # of a GGUF
        ("bf16", "*u8", "*fp16", "int4", 32, 1, 80),
        ("bf16", "*i8", "*fp16", "int8", 32, 1, 80),
        ("bf16", "*u8", "*fp16", "int4_least", 32, 1, 80),
        ("bf16", "*u8", "*fp32", "int4_least", 32, 1, 80),
        ("fp16", "*u8", "*fp16", "int4", 128, 1, 80),
        ("bf16", "*u8", "*u8", "fp4", 32, 1, 80),
        ("fp16", "*u8", "*u8", "fp4", 32, 1, 80),
        ("bf16", "*fp8e4nv", "*fp32", "fp8", 128, 128, 89),
        ("bf16", "*u8", "*fp32", "fp8_bits", 128, 128, 80),
    ]
    kernels = []
    for x, codes, scales, kind, group, rows_per_scale, least in formats:
        tiling = Tiling.of(4096, 4096, kind, group, 4 if x == "fp32" else 2)
        many = (1, 4) if x != "fp16" and (group == 128 or scales == "*fp16") else (1,)
        for gated, num_tiles in product((False, True), many):
            # as gate and up with a bias, or as down, which adds to the residual stream
            given = ("bias",) if gated else ("residual",)
            absent = {"bias", "residual"} - {*given}
            signature = {"x": f"*{x}", "codes": codes, "scales": scales, "out": f"*{x}"}
            signature |= dict.fromkeys(given, f"*{x}") | sizes
            signature |= {"parts": "*fp32", "counters": "*i32"}
            if kind.startswith("int4"):
                signature["zeros"] = "*u8" if kind == "int4" else scales
            else:
                absent.add("zeros")
            kernels.append(
                KernelBuild(
                    f"skinny {x} {kind} {group} {scales}{' gated' if gated else ''}"
                    f"{f' {16 * num_tiles} rows' if num_tiles > 1 else ''}",
                    skinny_kernel,
                    signature,
                    {
                        **dict.fromkeys(absent),
                        "KIND": kind,
                        "GROUP": group,
                        "ROWS_PER_SCALE": rows_per_scale,
                        "GATED": gated,
                        "HAS_BIAS": gated,
                        "HAS_RESIDUAL": not gated,
                        "EVEN_K": True,
                        "NUM_SPLITS": tiling.num_splits,
                        "NUM_TILES": num_tiles,
                        "BLOCK_N": tiling.outputs(num_tiles, gated=gated),
                        "BLOCK_K": tiling.block_k,
                        "DEPENDENT": True,
                        "LINES": 4,
                    },
                    num_stages=tiling.num_stages,
                    max_registers=tiling.registers(num_tiles),
                    min_capability=least,
                )
            )
    return kernels
