"""Routed experts on rows of 8 bits: FP4 codes where the file has them, whole sums, one call for all
experts of a layer. The rounding is that of int8_rows, a power of two for every 32 numbers."""

from collections.abc import Sequence

import torch

from dspark.checkpoints.deepseek_v4_target import Expert
from dspark_kernels.cpu.clamped_swiglu import clamped_swiglu
from dspark_kernels.cpu.int8_rows import round_int8
from dspark_kernels.cpu.mxfp4 import Segment, multiply_segments


def feed_rounded(
    x: torch.Tensor, expert_ids: torch.Tensor, experts: Sequence[Expert], limit: float
) -> torch.Tensor:
    """As feed_experts."""
    pairs = expert_ids.flatten()
    order = pairs.argsort(stable=True)
    chosen, counts = pairs[order].unique_consecutive(return_counts=True)
    rows = order // expert_ids.shape[1]
    inner, hidden = experts[0].gate.shape[0], x.shape[1]
    gate_up, said = torch.empty(len(pairs), 2 * inner), torch.empty(len(pairs), hidden)
    opening, closing = [], []
    own = torch.arange(len(pairs))
    end = 0
    for number, count in zip(chosen.tolist(), counts.tolist(), strict=True):
        mine, expert = slice(end, end + count), experts[number]
        opening.append(Segment(expert.gate, rows[mine], gate_up[mine, :inner]))
        opening.append(Segment(expert.up, rows[mine], gate_up[mine, inner:]))
        closing.append(Segment(expert.down, own[mine], said[mine]))
        end += count
    multiply_segments(round_int8(x), opening)
    multiply_segments(clamped_swiglu(gate_up, limit), closing)
    out = torch.empty_like(said)
    out[order] = said
    return out.view(*expert_ids.shape, hidden)
