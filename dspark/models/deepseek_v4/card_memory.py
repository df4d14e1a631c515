"""What a pass of DeepSeek-V4 on a card works with: its weights there, and the numbers of its rows
at fixed addresses."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from dspark.checkpoints.deepseek_v4_target import Block, TargetWeights
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.models.deepseek_v4.pass_memory import raw_widths
from dspark_kernels.cpu.deepseek_v4.step import ROW_WORDS
from dspark_kernels.cpu.deepseek_v4.streams_text import MIXES
from dspark_kernels.cpu.file_weight import FileWeight
from dspark_kernels.deepseek_v4.latent_attention import scratch_of


class CardMemory:
    """One layer after the other uses it."""

    @torch.inference_mode(False)  # passes write to it in any mode
    def __init__(
        self, config: DeepseekV4TargetConfig, num_rows: int, num_taps: int, device: torch.device
    ) -> None:
        n, hidden, inner = num_rows, config.hidden_size, config.expert_size
        heads, top = config.num_heads * config.head_dim, config.experts_per_token

        def floats(*size: int) -> torch.Tensor:
            return torch.empty(n, *size, device=device)

        self.num_rows = n
        self.rows = torch.zeros(n, ROW_WORDS, dtype=torch.int64, device=device)
        self.streams, self.units = (floats(*size) for size in ((4, hidden), (4 * hidden,)))
        self.projected, self.mixes = torch.zeros(n, MIXES, device=device), floats(MIXES)
        self.x, self.y = floats(hidden), floats(hidden)
        self.low, self.keys = floats(config.query_rank), floats(config.head_dim)
        self.queries, self.attended = floats(heads), floats(heads)
        self.scratch = scratch_of(n, config.num_heads, device)
        self.grouped = floats(config.output_groups * config.output_rank)
        self.raw = {name: floats(width) for name, width in raw_widths(config).items()}
        self.index_queries = floats(config.index_heads * config.index_dim)
        self.index_weights = floats(config.index_heads)
        self.chosen = torch.zeros(n, config.index_top, dtype=torch.int64, device=device)
        self.logits, self.shares = floats(config.num_experts), floats(top)
        self.routes = torch.zeros(config.num_layers, n, top, dtype=torch.int64, device=device)
        self.gate, self.up, self.gated = floats(inner), floats(inner), floats(inner)
        self.taps = floats(num_taps * hidden)


class CardBlock(NamedTuple):
    """A layer's weights on the card; `factors`: of its projections of streams, by sub-layer."""

    matrices: Mapping[str, FileWeight]
    tensors: Mapping[str, torch.Tensor]
    factors: Mapping[str, torch.Tensor]


def moved(weight: FileWeight, device: torch.device) -> FileWeight:
    """A weight's bytes in memory of the device's own."""
    scales = weight.scales
    return replace(
        weight,
        codes=weight.codes.to(device, copy=True),
        scales=None if scales is None else scales.to(device, copy=True),
    )


def moved_all(matrices: Mapping[str, FileWeight], device: torch.device) -> dict[str, FileWeight]:
    return {n: moved(each, device) for n, each in matrices.items() if ".experts." not in n}


def card_block(block: Block, device: torch.device) -> CardBlock:
    """`block` without its routed experts."""
    factors = {}
    for name in ("attn", "ffn"):
        scales = block.tensors[f"hc_{name}_scale"].repeat_interleave(torch.tensor([4, 4, 16]))
        factors[name] = stream_factors(scales, block.tensors[f"hc_{name}_base"]).to(device)
    tensors = {name: each.to(device) for name, each in block.tensors.items()}
    return CardBlock(moved_all(block.matrices, device), tensors, factors)


def stream_factors(scales: torch.Tensor, biases: torch.Tensor) -> torch.Tensor:
    """Of projections [24] or [4] -> [2, 32]."""
    factors = torch.zeros(2, MIXES)
    factors[0, : len(scales)], factors[1, : len(biases)] = scales, biases
    return factors


def whole_matrices(weights: TargetWeights, device: torch.device) -> dict[str, FileWeight]:
    """Those that belong to no layer."""
    names = ("head.weight", "hc_head_fn")
    return moved_all({name: weights.matrices[name] for name in names}, device)
