"""Float32 arithmetic in LLVM's text, 16 lanes wide on every processor, and the same in torch.

Only operations that round correctly are used, in the written order, so that no processor and no
library of functions decides a bit.
"""

import math
import struct

import torch

from dspark_kernels.cpu.exact import fma
from dspark_kernels.cpu.llvm_text import Text

LANES = 16
FLOATS, WORDS = "<16 x float>", "<16 x i32>"
MAGIC = 12582912.0  # 1.5 · 2**23: a number added to it is rounded to an integer, in the low bits
MAGIC_BITS = 0x4B400000
HIGHEST, LOWEST = 88.0, -87.0  # exponents between which exp is neither infinite nor subnormal
LOG2_E = 1.4426950408889634
LN2_HIGH = 0.693359375  # few bits: its product with a small whole number is exact
LN2_LOW = math.log(2.0) - LN2_HIGH
EXP_TERMS = [1.0 / math.factorial(k) for k in range(7, -1, -1)]


def number(value: float) -> str:
    """A float32 constant as LLVM reads it."""
    rounded = struct.unpack("f", struct.pack("f", value))[0]
    return "0x" + struct.pack(">d", rounded).hex().upper()


def numbers(value: float) -> str:
    return "<" + ", ".join([f"float {number(value)}"] * LANES) + ">"


def write_declarations(text: Text) -> None:
    text.raw(f"declare {FLOATS} @llvm.fma.v16f32({FLOATS}, {FLOATS}, {FLOATS})")
    text.raw("declare float @llvm.sqrt.f32(float)")


def write_exp(text: Text, x: str) -> str:
    """e to the power of each lane; 0 below LOWEST, the largest it gives above HIGHEST."""

    def choose(condition: str, one: str, other: str) -> str:
        mask = text.set(f"fcmp {condition}")
        return text.set(f"select <16 x i1> {mask}, {FLOATS} {one}, {FLOATS} {other}")

    high, low = numbers(HIGHEST), numbers(LOWEST)
    inside = choose(f"ogt {FLOATS} {x}, {high}", high, x)
    inside = choose(f"olt {FLOATS} {inside}, {low}", low, inside)
    moved = text.fma(LANES, inside, numbers(LOG2_E), numbers(MAGIC))
    whole = text.set(f"fsub {FLOATS} {moved}, {numbers(MAGIC)}")
    rest = text.fma(LANES, whole, numbers(-LN2_HIGH), inside)
    rest = text.fma(LANES, whole, numbers(-LN2_LOW), rest)
    total = numbers(EXP_TERMS[0])
    for term in EXP_TERMS[1:]:
        total = text.fma(LANES, total, rest, numbers(term))
    bits = text.set(f"bitcast {FLOATS} {moved} to {WORDS}")
    bias = ", ".join([f"i32 {127 - MAGIC_BITS}"] * LANES)
    bits = text.set(f"add {WORDS} {bits}, <{bias}>")
    shift = ", ".join(["i32 23"] * LANES)
    power = text.set(f"bitcast {WORDS} {text.set(f'shl {WORDS} {bits}, <{shift}>')} to {FLOATS}")
    result = text.set(f"fmul {FLOATS} {total}, {power}")
    return choose(f"olt {FLOATS} {x}, {low}", numbers(0.0), result)


def exp(x: torch.Tensor) -> torch.Tensor:
    """As write_exp, in torch: [...] -> [...]."""
    inside = torch.where(x > HIGHEST, HIGHEST, x)
    inside = torch.where(inside < LOWEST, LOWEST, inside)
    moved = fma(inside, torch.tensor(LOG2_E), torch.tensor(MAGIC))
    whole = moved - MAGIC
    rest = fma(whole, torch.tensor(-LN2_HIGH), inside)
    rest = fma(whole, torch.tensor(-LN2_LOW), rest)
    total = torch.tensor(EXP_TERMS[0])
    for term in EXP_TERMS[1:]:
        total = fma(total, rest, torch.tensor(term))
    powers = (moved.contiguous().view(torch.int32) - MAGIC_BITS + 127) << 23
    return torch.where(x < LOWEST, 0.0, total * powers.view(torch.float32))


def write_tree(text: Text, x: str, combine: str = "fadd") -> str:
    """One float of 16 lanes: lane i with lane i + 8, then i + 4, i + 2, i + 1."""
    width = LANES
    while width > 1:
        kind, width = f"<{width} x float>", width // 2
        halves = []
        for start in (0, width):
            lanes = ", ".join(f"i32 {start + lane}" for lane in range(width))
            halves.append(
                text.set(f"shufflevector {kind} {x}, {kind} poison, <{width} x i32> <{lanes}>")
            )
        half = f"<{width} x float>"
        if combine == "fadd":
            x = text.set(f"fadd {half} {halves[0]}, {halves[1]}")
        else:
            mask = text.set(f"fcmp ogt {half} {halves[0]}, {halves[1]}")
            x = text.set(f"select <{width} x i1> {mask}, {half} {halves[0]}, {half} {halves[1]}")
    return text.set(f"extractelement <1 x float> {x}, i64 0")


def tree_sum(x: torch.Tensor) -> torch.Tensor:
    """As write_tree, in torch: [..., 16] -> [...]."""
    for width in (8, 4, 2, 1):
        x = x[..., :width] + x[..., width : 2 * width]
    return x[..., 0]
