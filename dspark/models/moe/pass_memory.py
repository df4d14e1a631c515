"""The numbers of one pass of a decoder with routed experts, at fixed addresses, for so many
rows."""

import torch

from dspark.checkpoints.moe_config import MoeConfig
from dspark_kernels.cpu.attend_round import attend_scratch
from dspark_kernels.cpu.float_text import LANES
from dspark_kernels.cpu.int8_rows import empty_int8
from dspark_kernels.cpu.mxfp4 import SEGMENT_WORDS
from dspark_kernels.cpu.rope_write import Heads


class PassMemory:
    """One layer after the other uses it."""

    @torch.inference_mode(False)  # passes write to it in any mode
    def __init__(self, config: MoeConfig, num_rows: int, num_taps: int, *, rounds: bool) -> None:
        n, hidden, inner = num_rows, config.hidden_size, config.expert_size
        top = config.experts_per_token
        pairs = n * top
        heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.num_rows = n
        self.total, self.x, self.update = (torch.empty(n, hidden) for _ in range(3))
        self.qkv = torch.empty(n, (heads + 2 * kv_heads) * dim)
        self.queries, self.attended = torch.empty(n, heads, dim), torch.empty(n, heads * dim)
        self.scratch = attend_scratch(n, Heads(heads, kv_heads, dim, 1.0))
        self.logits = torch.zeros(n, -(-config.num_experts // LANES) * LANES)
        self.routes = torch.zeros(config.num_layers, n, top, dtype=torch.int64)
        self.shares = torch.empty(n, top)
        self.opening = torch.empty(2 * pairs, SEGMENT_WORDS, dtype=torch.int64)
        self.closing = torch.empty(pairs, SEGMENT_WORDS, dtype=torch.int64)
        self.num_segments = torch.empty(1, dtype=torch.int64)
        self.places, self.own = torch.empty(pairs, dtype=torch.int64), torch.arange(pairs)
        self.pair_rows = torch.empty(pairs, dtype=torch.int64)
        self.counts = torch.empty(config.num_experts, dtype=torch.int64)
        self.gate_up, self.said = torch.empty(pairs, 2 * inner), torch.empty(pairs, hidden)
        self.rounded = empty_int8(n, hidden).data if rounds else torch.empty(0)
        self.inner = empty_int8(pairs, inner).data if rounds else torch.empty(pairs, inner)
        self.taps = torch.empty(n, num_taps * hidden)
