"""SwiGLU over a fused gate and up projection."""

import torch
import torch.nn.functional as F

from dspark_kernels.backend import jit, tl, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.rounding import round_to

BLOCK = 1024


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up [..., 2I] (gate first) -> silu(gate) * up [..., I]."""
    if not use_triton(gate_up):
        return swiglu_reference(gate_up)
    gate_up = gate_up.contiguous()
    width = gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], width)
    num_rows, num_blocks = out.numel() // width, -(-width // BLOCK)
    swiglu_kernel[(num_rows, num_blocks)](gate_up, out, WIDTH=width, BLOCK=BLOCK)
    return out


def swiglu_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """As swiglu, in torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


@jit
def swiglu_kernel(
    gate_up: tl.tensor,  # [rows, 2 WIDTH]
    out: tl.tensor,  # [rows, WIDTH]
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    dtype = out.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = row * 2 * WIDTH + column
    gate = tl.load(gate_up + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + at + WIDTH, mask=inside, other=0.0).to(tl.float32)
    activated = round_to(gate / (1.0 + tl.exp(-gate)), dtype).to(tl.float32)
    tl.store(out + row * WIDTH + column, round_to(activated * up, dtype), mask=inside)


def builds() -> list[KernelBuild]:
    sizes = {"WIDTH": 9728, "BLOCK": BLOCK}
    return [
        KernelBuild(f"swiglu {t}", swiglu_kernel, {"gate_up": f"*{t}", "out": f"*{t}"}, sizes)
        for t in ("bf16", "fp32")
    ]
