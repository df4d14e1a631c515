"""The numbers of one pass of DeepSeek-V4's native program, at fixed addresses, for so many rows."""

from collections.abc import Mapping

import torch

from dspark.checkpoints.deepseek_v4_cache_layout import compressors
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark_kernels.cpu.deepseek_v4.streams_text import MIXES
from dspark_kernels.cpu.float_text import LANES
from dspark_kernels.cpu.int8_rows import empty_int8
from dspark_kernels.cpu.mxfp4 import SEGMENT_WORDS


class PassMemory:
    """One layer after the other uses it."""

    @torch.inference_mode(False)  # passes write to it in any mode
    def __init__(self, config: DeepseekV4TargetConfig, num_rows: int, num_taps: int) -> None:
        n, hidden, streams = num_rows, config.hidden_size, config.num_streams
        heads, top = config.num_heads * config.head_dim, config.experts_per_token
        inner, pairs = config.expert_size, n * top
        self.num_rows = n
        self.streams = torch.empty(n, streams, hidden)
        self.units = torch.empty(n, streams * hidden)
        self.ones = torch.ones(max(streams * hidden, config.head_dim))
        self.projected, self.mixes = torch.empty(n, MIXES), torch.empty(n, MIXES)
        self.x, self.y = torch.empty(n, hidden), torch.empty(n, hidden)
        self.low = _apart(n, config.query_rank)
        self.queries, self.attended = _apart(n, heads), _apart(n, heads)
        self.keys = torch.empty(n, config.head_dim)
        self.grouped = _apart(n, config.output_groups * config.output_rank)
        self.raw = {name: torch.empty(n, width) for name, width in raw_widths(config).items()}
        self.index_queries = torch.empty(n, config.index_heads * config.index_dim)
        self.index_weights = torch.empty(n, config.index_heads)
        self.chosen = torch.empty(n, config.index_top, dtype=torch.int64)
        self.logits = torch.empty(n, 2, -(-config.num_experts // LANES) * LANES)
        self.routes = torch.zeros(config.num_layers, n, top, dtype=torch.int64)
        self.shares = torch.empty(n, top)
        self.gate, self.up, self.gated = (torch.empty(n, inner) for _ in range(3))
        self.rounded = empty_int8(n, hidden)
        self.opening = torch.empty(2 * pairs, SEGMENT_WORDS, dtype=torch.int64)
        self.closing = torch.empty(pairs, SEGMENT_WORDS, dtype=torch.int64)
        self.num_segments = torch.empty(1, dtype=torch.int64)
        self.places, self.own = torch.empty(pairs, dtype=torch.int64), torch.arange(pairs)
        self.pair_rows = torch.empty(pairs, dtype=torch.int64)
        self.counts = torch.empty(config.num_experts, dtype=torch.int64)
        self.gate_up, self.said = torch.empty(pairs, 2 * inner), torch.empty(pairs, hidden)
        self.inner = empty_int8(pairs, inner)
        self.taps = torch.empty(n, num_taps * hidden)


def _apart(num_rows: int, width: int) -> torch.Tensor:
    """Rows that do not begin a power of two apart, so that those of a product do not compete for
    the same lines of a cache."""
    return torch.empty(num_rows, width + LANES)[:, :width]


def raw_widths(config: DeepseekV4TargetConfig) -> Mapping[str, int]:
    """By compressor, the most numbers of a row of any layer."""
    widths: dict[str, int] = {}
    for layer in range(config.num_layers):
        for name, width in compressors(config, layer).items():
            columns = 2 * width * (1 + config.selects[layer])
            widths[name] = max(widths.get(name, 0), columns)
    return widths
