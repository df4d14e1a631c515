"""DFlash 2's convolution of a drafted block's rows, around attention and MLP.

Row i of a block becomes the sum over taps t of (base[t] + δ[i, t]) · row i - t; what is before the
block counts as zero. Coefficients of both sides of a sublayer come from its normed input.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dspark_kernels.backend import jit, next_power_of_2, tl, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.dependent_launch import launch_options, wait_for_previous
from dspark_kernels.linear import SkinnyLinear
from dspark_kernels.rounding import round_to

BLOCK = 512


@dataclass(frozen=True, slots=True)
class BlockFilter:
    """base [2, T, H] for before and after the sublayer; projection H -> 2 * T * G, of which
    H / G channels share a coefficient; `rows` of a block."""

    base: torch.Tensor
    projection: SkinnyLinear
    rows: int

    def coefficients(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, H], the sublayer's normed input -> δ [N, 2 * T * G]."""
        return self.projection(x)

    def __call__(self, x: torch.Tensor, delta: torch.Tensor, side: int) -> torch.Tensor:
        """x [N, H] of whole blocks -> [N, H]; side 0 before the sublayer, 1 after it."""
        return filter_blocks(x, delta, self.base, side, self.rows)


def filter_blocks_reference(
    x: torch.Tensor, delta: torch.Tensor, base: torch.Tensor, side: int, rows: int
) -> torch.Tensor:
    """x [N, H], delta [N, 2 * T * G], base [2, T, H] -> [N, H], summed in float32."""
    num_taps, width = base.shape[1:]
    blocks = x.float().unflatten(0, (-1, rows))
    own = delta.float().view(len(x), 2, num_taps, -1)[:, side]
    own = own.repeat_interleave(width // own.shape[-1], dim=-1)
    out = torch.zeros_like(x, dtype=torch.float32)
    for tap in range(num_taps):
        shifted = F.pad(blocks, (0, 0, tap, 0))[:, :rows].flatten(0, 1)
        out = out + (base[side, tap].float() + own[:, tap]) * shifted
    return out.to(x.dtype)


def filter_blocks(
    x: torch.Tensor, delta: torch.Tensor, base: torch.Tensor, side: int, rows: int
) -> torch.Tensor:
    """As filter_blocks_reference."""
    if not use_triton(x):
        return filter_blocks_reference(x, delta, base, side, rows)
    num_taps, width = base.shape[1:]
    x, delta, out = x.contiguous(), delta.contiguous(), torch.empty_like(x)
    block = min(BLOCK, next_power_of_2(width))
    filter_blocks_kernel[(len(x), -(-width // block))](
        x,
        delta,
        base,
        out,
        rows,
        side,
        TAPS=num_taps,
        GROUP=width * 2 * num_taps // delta.shape[1],
        WIDTH=width,
        BLOCK=block,
        **launch_options(x.device),
    )
    return out


@jit
def filter_blocks_kernel(
    x: tl.tensor,  # [N, WIDTH]
    delta: tl.tensor,  # [N, 2 TAPS WIDTH / GROUP]
    base: tl.tensor,  # [2, TAPS, WIDTH]
    out: tl.tensor,  # [N, WIDTH]
    rows: tl.tensor,
    side: tl.tensor,
    TAPS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One block of channels of one row a program."""
    wait_for_previous(DEPENDENT)
    GROUPS: tl.constexpr = WIDTH // GROUP
    row = tl.program_id(0)
    place = row % rows
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < WIDTH
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for tap in tl.static_range(TAPS):
        coefficient = tl.load(base + (side * TAPS + tap) * WIDTH + channel, mask=inside, other=0.0)
        own = delta + row.to(tl.int64) * 2 * TAPS * GROUPS + (side * TAPS + tap) * GROUPS
        own_value = tl.load(own + channel // GROUP, mask=inside, other=0.0)
        at = (row - tap).to(tl.int64) * WIDTH + channel
        value = tl.load(x + at, mask=inside & (place + channel * 0 >= tap), other=0.0)
        total += (coefficient.to(tl.float32) + own_value.to(tl.float32)) * value.to(tl.float32)
    rounded = round_to(total, out.dtype.element_ty)
    tl.store(out + row.to(tl.int64) * WIDTH + channel, rounded, mask=inside)


def builds() -> list[KernelBuild]:
    kernels = []
    for element in ("bf16", "fp32"):
        signature = {name: f"*{element}" for name in ("x", "delta", "base", "out")}
        signature |= {"rows": "i32", "side": "i32"}
        sizes = {"TAPS": 2, "GROUP": 16, "WIDTH": 4096, "BLOCK": BLOCK, "DEPENDENT": True}
        build = KernelBuild(f"filter blocks {element}", filter_blocks_kernel, signature, sizes)
        kernels.append(build)
    return kernels
