"""RMSNorm, computed in float32, alone or after adding to the residual stream.

What was normed can be kept as a tap: [N, D], a part of a wider tensor.
"""

import torch
import torch.nn.functional as F

from dspark_kernels.backend import jit, next_power_of_2, tl, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.dependent_launch import launch_options, wait_for_previous
from dspark_kernels.paired_sum import paired_sum, squared
from dspark_kernels.rounding import round_to


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, tap: torch.Tensor | None = None
) -> torch.Tensor:
    """x [..., D], weight [D] -> [..., D]."""
    if not use_triton(x, weight):
        if tap is not None:
            tap.copy_(x)
        return rms_norm_reference(x, weight, eps)
    x = x.contiguous()
    out = torch.empty_like(x)
    _launch(x, None, weight, None, out, eps, tap)
    return out


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As rms_norm, in torch."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    normed = F.rms_norm(x.float(), (x.shape[-1],), None, eps)
    return weight * normed.to(x.dtype)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    tap: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual [..., D] -> the norm of their sum, and the sum."""
    if not use_triton(x, residual, weight):
        normed, total = add_rms_norm_reference(x, residual, weight, eps)
        if tap is not None:
            tap.copy_(total)
        return normed, total
    x, residual = x.contiguous(), residual.contiguous()
    total, out = torch.empty_like(x), torch.empty_like(x)
    _launch(x, residual, weight, total, out, eps, tap)
    return out, total


def add_rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As add_rms_norm, in torch."""
    total = x + residual
    return rms_norm_reference(total, weight, eps), total


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    total: torch.Tensor | None,
    out: torch.Tensor,
    eps: float,
    tap: torch.Tensor | None,
) -> None:
    width = x.shape[-1]
    block = next_power_of_2(width)
    rms_norm_kernel[(x.numel() // width,)](
        x,
        residual,
        weight,
        total,
        out,
        tap,
        eps,
        0 if tap is None else tap.stride(0),
        WIDTH=width,
        BLOCK=block,
        HAS_RESIDUAL=residual is not None,
        HAS_TAP=tap is not None,
        num_warps=warps_of_a_row(block),
        **launch_options(x.device),
    )


def warps_of_a_row(block: int) -> int:
    return min(max(block // 512, 1), 16)


@jit
def rms_norm_kernel(
    x: tl.tensor,  # [rows, WIDTH]
    residual: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    tap: tl.tensor,
    eps: tl.tensor,
    tap_stride: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_TAP: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One row a program, so that no row's sum depends on the others."""
    wait_for_previous(DEPENDENT)
    dtype = out.dtype.element_ty
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    row = tl.program_id(0).to(tl.int64)
    at = row * WIDTH + column
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        values += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        rounded = round_to(values, dtype)
        tl.store(total + at, rounded, mask=inside)
        values = rounded.to(tl.float32)
    if HAS_TAP:
        tl.store(tap + row * tap_stride + column, round_to(values, dtype), mask=inside)
    tl.store(out + at, normed_row(values, weight, column, eps, WIDTH, dtype), mask=inside)


@jit
def normed_row(
    values: tl.tensor,
    weight: tl.tensor,
    column: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    dtype: tl.constexpr,
) -> tl.tensor:
    """The norm of a row in float32, zeros behind its end, rounded before and after its weight."""
    scale = tl.rsqrt(paired_sum(squared(values), column.shape[0]) / WIDTH + eps)
    normed = round_to(values * scale, dtype).to(tl.float32)
    scaled = normed * tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    return round_to(scaled, dtype)


def builds() -> list[KernelBuild]:
    kernels = []
    for width, dtype, has_residual, has_tap in (
        (2560, "bf16", True, False),
        (4096, "bf16", False, True),
        (5120, "fp32", True, True),
    ):
        block = next_power_of_2(width)
        signature = {name: f"*{dtype}" for name in ("x", "weight", "out")} | {"eps": "fp32"}
        signature |= {"tap_stride": "i32"}
        constexprs: dict[str, int | None] = {
            "WIDTH": width,
            "BLOCK": block,
            "HAS_RESIDUAL": has_residual,
            "HAS_TAP": has_tap,
            "DEPENDENT": True,
        }
        if has_tap:
            signature["tap"] = f"*{dtype}"
        else:
            constexprs["tap"] = None
        if has_residual:
            signature |= {"residual": f"*{dtype}", "total": f"*{dtype}"}
        else:
            constexprs |= {"residual": None, "total": None}
        name = f"{'add_' if has_residual else ''}rms_norm {dtype} {width}"
        warps = warps_of_a_row(block)
        kernels.append(KernelBuild(name, rms_norm_kernel, signature, constexprs, num_warps=warps))
    return kernels
