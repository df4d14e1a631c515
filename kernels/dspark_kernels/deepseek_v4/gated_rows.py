"""SwiGLU of clamped numbers in float32, for the expert that all rows share: `gated` of
cpu/deepseek_v4."""

import torch

from dspark_kernels.backend import jit, tl
from dspark_kernels.builds import KernelBuild
from dspark_kernels.deepseek_v4.exact_math import UNFUSED, clamped_swiglu

BLOCK = 256


def gated_rows(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor, limit: float) -> None:
    """silu(min(gate, limit)) times clamp(up, ±limit), all contiguous and of one shape."""
    count = gate.numel()
    gated_rows_kernel[(-(-count // BLOCK),)](gate, up, out, limit, count, BLOCK=BLOCK, **UNFUSED)


@jit
def gated_rows_kernel(
    gate: tl.tensor,
    up: tl.tensor,
    out: tl.tensor,
    limit: tl.tensor,
    count: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    gates = tl.load(gate + at, mask=inside, other=0.0)
    ups = tl.load(up + at, mask=inside, other=0.0)
    tl.store(out + at, clamped_swiglu(gates, ups, limit), mask=inside)


def builds() -> list[KernelBuild]:
    signature = dict.fromkeys(("gate", "up", "out"), "*fp32") | {"limit": "fp32", "count": "i32"}
    return [
        KernelBuild("v4 gated rows", gated_rows_kernel, signature, {"BLOCK": BLOCK}, fuses=False)
    ]
