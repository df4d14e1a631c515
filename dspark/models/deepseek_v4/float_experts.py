"""Routed experts in float32: each row meets the FP4 codes unrounded."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from dspark.checkpoints.deepseek_v4_target import Expert
from dspark.models.deepseek_v4.row_wise import by_rows
from dspark_kernels.cpu.file_weight import FileWeight
from dspark_kernels.cpu.float_matrix import multiply_floats


def feed(
    x: torch.Tensor, gate: FileWeight, up: FileWeight, down: FileWeight, limit: float
) -> torch.Tensor:
    """x [N, H] -> [N, H], gate and value cut off at the limit."""
    gated = by_rows(F.silu, multiply_floats(x, gate).clamp(max=limit))
    return multiply_floats(gated * multiply_floats(x, up).clamp(-limit, limit), down)


def feed_experts(
    x: torch.Tensor, expert_ids: torch.Tensor, experts: Sequence[Expert], limit: float
) -> torch.Tensor:
    """x [N, H], expert_ids [N, k] -> [N, k, H], what each expert says of the row."""
    said = torch.empty(*expert_ids.shape, x.shape[1])
    for number in expert_ids.unique().tolist():
        rows, places = (expert_ids == number).nonzero(as_tuple=True)
        expert = experts[number]
        said[rows, places] = feed(x[rows], expert.gate, expert.up, expert.down, limit)
    return said
