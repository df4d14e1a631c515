"""SwiGLU of clamped numbers, rounded to 8 bits: silu(min(gate, limit)) · clamp(up, ±limit), where
silu is gate / (1 + exp(-gate)), each step rounded and exp by the recipe of float_text."""

import struct

import torch

from dspark_kernels.cpu.float_text import exp
from dspark_kernels.cpu.int8_rows import GROUP, Int8Rows, empty_int8, round_int8_reference
from dspark_kernels.cpu.runtime import Op, current


def clamped_swiglu(gate_up: torch.Tensor, limit: float) -> Int8Rows:
    """gate_up float32 [N, 2 K], gate first, K a multiple of 32."""
    runtime = current()
    if runtime is None:
        return clamped_swiglu_reference(gate_up, limit)
    out = empty_int8(len(gate_up), gate_up.shape[1] // 2)
    if len(gate_up):
        runtime.run([clamped_swiglu_op(gate_up.contiguous(), out, limit)], len(gate_up))
    return out


def clamped_swiglu_op(gate_up: torch.Tensor, out: Int8Rows, limit: float) -> Op:
    """gate_up contiguous; as many rows as `out` has."""
    groups = out.width // GROUP
    bits = int.from_bytes(struct.pack("<f", limit), "little")
    return Op("clamped_swiglu", 0, groups, (gate_up, out.data, groups, bits), fewest=8)


def clamped_swiglu_reference(gate_up: torch.Tensor, limit: float) -> Int8Rows:
    """As clamped_swiglu, in torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return round_int8_reference(gate / (1.0 + exp(-gate)) * up)
