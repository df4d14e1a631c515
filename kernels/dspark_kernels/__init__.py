"""Tensor operations of the decoder: one file per operation, torch only so far."""

from dspark_kernels.accept import Acceptance, accept_greedy, accept_sampled
from dspark_kernels.attention import PooledAttention
from dspark_kernels.kv_cache import KVPool, KVSlot, RowPlan
from dspark_kernels.norm import rms_norm
from dspark_kernels.rope import RotaryTable, apply_rope
from dspark_kernels.sampling import draw, probabilities
from dspark_kernels.skinny_linear import SkinnyLinear
from dspark_kernels.swiglu import swiglu

__all__ = [
    "Acceptance",
    "KVPool",
    "KVSlot",
    "PooledAttention",
    "RotaryTable",
    "RowPlan",
    "SkinnyLinear",
    "accept_greedy",
    "accept_sampled",
    "apply_rope",
    "draw",
    "probabilities",
    "rms_norm",
    "swiglu",
]
