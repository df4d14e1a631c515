"""RMSNorm, computed in float32, alone or after adding to the residual stream."""

import torch
import torch.nn.functional as F

from dspark_kernels.backend import jit, next_power_of_2, tl, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.dependent_launch import launch_options, wait_for_previous
from dspark_kernels.rounding import round_to


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., D], weight [D] -> [..., D]."""
    if not use_triton(x, weight):
        return rms_norm_reference(x, weight, eps)
    x = x.contiguous()
    out = torch.empty_like(x)
    _launch(x, None, weight, None, out, eps)
    return out


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As rms_norm, in torch."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    normed = F.rms_norm(x.float(), (x.shape[-1],), None, eps)
    return weight * normed.to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual [..., D] -> the norm of their sum, and the sum."""
    if not use_triton(x, residual, weight):
        return add_rms_norm_reference(x, residual, weight, eps)
    x, residual = x.contiguous(), residual.contiguous()
    total, out = torch.empty_like(x), torch.empty_like(x)
    _launch(x, residual, weight, total, out, eps)
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
) -> None:
    width = x.shape[-1]
    block = next_power_of_2(width)
    rms_norm_kernel[(x.numel() // width,)](
        x,
        residual,
        weight,
        total,
        out,
        eps,
        WIDTH=width,
        BLOCK=block,
        HAS_RESIDUAL=residual is not None,
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
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One row a program, so that no row's sum depends on the others."""
    wait_for_previous(DEPENDENT)
    dtype = out.dtype.element_ty
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + column
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        values += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        rounded = round_to(values, dtype)
        tl.store(total + at, rounded, mask=inside)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / WIDTH + eps)
    normed = round_to(values * scale, dtype).to(tl.float32)
    scaled = normed * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, round_to(scaled, dtype), mask=inside)


def builds() -> list[KernelBuild]:
    kernels = []
    for width, dtype, has_residual in (
        (2560, "bf16", True),
        (4096, "bf16", False),
        (5120, "fp32", True),
    ):
        block = next_power_of_2(width)
        signature = {name: f"*{dtype}" for name in ("x", "weight", "out")} | {"eps": "fp32"}
        constexprs: dict[str, int | None] = {
            "WIDTH": width,
            "BLOCK": block,
            "HAS_RESIDUAL": has_residual,
            "DEPENDENT": True,
        }
        if has_residual:
            signature |= {"residual": f"*{dtype}", "total": f"*{dtype}"}
        else:
            constexprs |= {"residual": None, "total": None}
        name = f"{'add_' if has_residual else ''}rms_norm {dtype} {width}"
        warps = warps_of_a_row(block)
        kernels.append(KernelBuild(name, rms_norm_kernel, signature, constexprs, num_warps=warps))
    return kernels
