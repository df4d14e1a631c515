"""Arithmetic of V4's kernels: the recipes of cpu/float_text, operation by operation."""

from typing import Any

from dspark_kernels.backend import jit, tl
from dspark_kernels.cpu import float_text

LANES = tl.constexpr(float_text.LANES)
MAGIC = tl.constexpr(float_text.MAGIC)
BIAS = tl.constexpr(127 - float_text.MAGIC_BITS)
HIGHEST, LOWEST = tl.constexpr(float_text.HIGHEST), tl.constexpr(float_text.LOWEST)
LOG2_E = tl.constexpr(float_text.LOG2_E)
MINUS_LN2_HIGH = tl.constexpr(-float_text.LN2_HIGH)
MINUS_LN2_LOW = tl.constexpr(-float_text.LN2_LOW)
FACTORIALS = tl.constexpr(tuple(float_text.EXP_TERMS))
# of every launch: products and sums are fused where the source says so, and nowhere else
UNFUSED: dict[str, Any] = {"enable_fp_fusion": False}


@jit
def fma(x: tl.tensor, y: tl.tensor, z: tl.tensor) -> tl.tensor:
    """x y + z, rounded once; the shapes broadcast."""
    x, y = tl.broadcast(x, y)
    x, z = tl.broadcast(x, z)
    y, z = tl.broadcast(y, z)
    return tl.fma(x, y, z)


@jit
def constant(like: tl.tensor, VALUE: tl.constexpr) -> tl.tensor:
    return tl.zeros_like(like) + VALUE


@jit
def exp(x: tl.tensor) -> tl.tensor:
    """As float_text.exp: 0 below LOWEST, the largest it gives above HIGHEST."""
    inside = tl.where(x > HIGHEST, HIGHEST, x)
    inside = tl.where(inside < LOWEST, LOWEST, inside)
    moved = tl.fma(inside, constant(x, LOG2_E), constant(x, MAGIC))
    whole = moved - MAGIC
    rest = tl.fma(whole, constant(x, MINUS_LN2_HIGH), inside)
    rest = tl.fma(whole, constant(x, MINUS_LN2_LOW), rest)
    total = constant(x, FACTORIALS[0])
    for index in tl.static_range(1, 8):
        total = tl.fma(total, rest, constant(x, FACTORIALS[index]))
    power = (moved.to(tl.int32, bitcast=True) + BIAS) << 23
    return tl.where(x < LOWEST, 0.0, total * power.to(tl.float32, bitcast=True))


@jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    return tl.div_rn(constant(x, 1.0), 1.0 + exp(-x))


@jit
def tree_sum(x: tl.tensor, COUNT: tl.constexpr) -> tl.tensor:
    """COUNT times 16 lanes -> [COUNT]: lane i with lane i + 8, then i + 4, i + 2, i + 1."""
    x = tl.sum(tl.reshape(x, (COUNT, 2, 8)), axis=1)
    x = tl.sum(tl.reshape(x, (COUNT, 2, 4)), axis=1)
    x = tl.sum(tl.reshape(x, (COUNT, 2, 2)), axis=1)
    return tl.sum(x, axis=1)


@jit
def inverse_root(squares: tl.tensor, COUNT: tl.constexpr, eps: tl.tensor) -> tl.tensor:
    """1 / sqrt(mean of squares + eps), [1]; squares [16], of COUNT numbers."""
    total = tree_sum(squares, 1)
    mean = tl.div_rn(total, constant(total, COUNT)) + eps
    return tl.div_rn(constant(total, 1.0), tl.sqrt_rn(mean))


@jit
def clamped_swiglu(gate: tl.tensor, up: tl.tensor, limit: tl.tensor) -> tl.tensor:
    """silu(min(gate, limit)) times up within ±limit; of a NaN, the NaN."""
    gate = tl.where(gate > limit, limit, gate)
    up = tl.where(up > limit, limit, up)
    up = tl.where(up < -limit, -limit, up)
    return tl.div_rn(gate, exp(-gate) + 1.0) * up
