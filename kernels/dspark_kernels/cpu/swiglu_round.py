"""SwiGLU and rounding in one: (gate / (1 + exp(-gate))) · up, each step rounded."""

import torch

from dspark_kernels.cpu.float_text import FLOATS, exp, numbers, write_exp
from dspark_kernels.cpu.llvm_text import Loop, Text
from dspark_kernels.cpu.rounded import GROUP, RoundedRows, empty_rounded, round_rows_reference
from dspark_kernels.cpu.rounded_text import round_group, write_place
from dspark_kernels.cpu.runtime import Op, current


def swiglu_round(gate_up: torch.Tensor) -> RoundedRows:
    """gate_up float32 [N, 2 K], gate first, K a multiple of 32."""
    runtime = current()
    if runtime is None:
        return swiglu_round_reference(gate_up)
    gate_up = gate_up.contiguous()
    out = empty_rounded(len(gate_up), gate_up.shape[1] // 2)
    runtime.run([swiglu_round_op(gate_up, out.data)], len(gate_up))
    return out


def swiglu_round_op(gate_up: torch.Tensor, rounded: torch.Tensor) -> Op:
    """gate_up [N, 2 K]; rows may be further apart."""
    width = gate_up.shape[1] // 2
    groups = width // GROUP
    words = (gate_up, 4 * gate_up.stride(0), 4 * width, rounded, groups)
    return Op("swiglu_round", 0, groups, words, fewest=groups)


def swiglu_round_reference(gate_up: torch.Tensor) -> RoundedRows:
    """As swiglu_round, in torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return round_rows_reference(gate / (1.0 + exp(-gate)) * up)


def write_swiglu_round(text: Text) -> None:
    """A unit is a group of a row."""
    text.raw("define void @swiglu_round(ptr %own, ptr %step, i64 %first, i64 %last) {")
    source, stride = text.argument("%own", 0, "ptr"), text.argument("%own", 1)
    half, rounded = text.argument("%own", 2), text.argument("%own", 3, "ptr")
    groups, rows = text.argument("%own", 4), text.load("i64", "%step", 8)
    loop = Loop(text, "%first", "%last")
    row = text.set(f"udiv i64 {loop.index}, {groups}")
    group = text.set(f"urem i64 {loop.index}, {groups}")
    inside = text.set(
        f"add i64 {text.set(f'mul i64 {row}, {stride}')}, {text.set(f'shl i64 {group}, 7')}"
    )
    gate = text.at(source, inside)
    up = text.at(gate, half)
    values = [_swiglu(text, text.at(gate, at), text.at(up, at)) for at in (0, 64)]
    place = write_place(text, rounded, groups, row, rows)
    round_group(text, values, place, group)
    loop.close()
    text.do("ret void")
    text.raw("}")


def _swiglu(text: Text, gate_at: str, up_at: str) -> str:
    gate, up = text.load(FLOATS, gate_at), text.load(FLOATS, up_at)
    power = write_exp(text, text.set(f"fneg {FLOATS} {gate}"))
    below = text.set(f"fadd {FLOATS} {power}, {numbers(1.0)}")
    gated = text.set(f"fdiv {FLOATS} {gate}, {below}")
    return text.set(f"fmul {FLOATS} {gated}, {up}")
