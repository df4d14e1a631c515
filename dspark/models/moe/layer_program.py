"""A layer of gpt-oss or Qwen3-MoE as operations of one native program; `reference` beside this has
it in torch, to the bit."""

from collections.abc import Iterator

import torch

from dspark.checkpoints.deepseek_v4_target import Block
from dspark.checkpoints.moe_config import MoeConfig
from dspark.checkpoints.moe_target import OSS_EXPERTS, router_of
from dspark.models.deepseek_v4.layer_program import norm_op
from dspark.models.expert_store import addresses
from dspark.models.moe.pass_memory import PassMemory
from dspark_kernels.cpu.attend_round import attend_floats_op
from dspark_kernels.cpu.deepseek_v4.routing_text import SHARES
from dspark_kernels.cpu.deepseek_v4.text import bits
from dspark_kernels.cpu.float_matrix import counted_floats_op, multiply_floats_op
from dspark_kernels.cpu.float_text import LANES
from dspark_kernels.cpu.int8_rows import GROUP
from dspark_kernels.cpu.mxfp4 import TILE
from dspark_kernels.cpu.rope_write import Heads, rope_write_op
from dspark_kernels.cpu.runtime import Op
from dspark_kernels.cpu.step_words import MAX_HEAD_DIM

FLOAT = 4
NO_SINK = -1e30  # as a score: adds nothing to any sum
ALL_KEYS = 1 << 60  # a window


def is_supported(config: MoeConfig) -> bool:
    """Whether sizes are whole chunks of the operations."""
    sizes = (config.hidden_size, config.expert_size, config.head_dim)
    return not any(size % GROUP for size in sizes) and config.head_dim <= MAX_HEAD_DIM


def heads_of(config: MoeConfig, block: Block) -> Heads:
    query, key = (block.tensors.get(f"self_attn.{which}_norm.weight") for which in "qk")
    norms = None
    if query is not None and key is not None:
        norms = (query, key, config.rms_norm_eps)
    sizes = (config.num_heads, config.num_kv_heads, config.head_dim)
    return Heads(*sizes, config.head_dim**-0.5, norms)


def sinks_of(config: MoeConfig, block: Block) -> torch.Tensor:
    """[heads]."""
    sinks = block.tensors.get("self_attn.sinks")
    return torch.full((config.num_heads,), NO_SINK) if sinks is None else sinks


def router_bias_of(config: MoeConfig, block: Block) -> torch.Tensor:
    """[E], in whole chunks, of which those that are no experts are never chosen."""
    bias = torch.full((-(-config.num_experts // LANES) * LANES,), float("-inf"))
    own = block.tensors.get("mlp.router.bias", torch.zeros(config.num_experts))
    bias[: config.num_experts] = own
    return bias


class LayerProgram:
    """Builds the operations of one layer. `rounds`: rows meet experts in 8 bits."""

    def __init__(
        self, config: MoeConfig, layer: int, block: Block, memory: PassMemory, *, rounds: bool
    ) -> None:
        self._config, self._layer, self._memory, self._block = config, layer, memory, block
        self._matrices, self._tensors = block.matrices, block.tensors
        self._rounds = rounds
        self._eps = bits(config.rms_norm_eps)

    def until_route(self) -> Iterator[Op]:
        """From the rows to the experts of each."""
        config, memory, tensors = self._config, self._memory, self._tensors
        heads = heads_of(config, self._block)
        hidden = config.hidden_size
        yield self._norm("input_layernorm.weight")
        yield from self._projections()
        yield rope_write_op(memory.qkv, memory.queries, self._layer, heads)
        window = config.windows[self._layer] or ALL_KEYS
        around = (memory.queries, memory.attended, self._layer, heads, memory.scratch)
        yield attend_floats_op(*around, sinks_of(config, self._block), window)
        yield self._times(memory.attended, "self_attn.o_proj", memory.update)
        bias = tensors.get("self_attn.o_proj.bias", torch.zeros(hidden))
        yield Op("add_rows", 0, 1, (memory.total, memory.update, bias, hidden // LANES))
        yield self._norm("post_attention_layernorm.weight")
        router = router_of(config)
        yield self._times(memory.x, router, memory.logits)
        yield self._route()

    def feed_experts(self, tap: torch.Tensor | None) -> Iterator[Op]:
        """`tap` [N, H], rows may be further apart: for the rows behind this layer."""
        config, memory = self._config, self._memory
        hidden, inner = config.hidden_size, config.expert_size
        yield self._group()
        if self._rounds:
            yield Op("round_int8", 0, hidden // GROUP, (memory.x, memory.rounded), fewest=8)
        yield self._products(memory.opening, 2, memory.rounded, (inner, 2 * inner))
        yield self._gate()
        yield self._products(memory.closing, 1, memory.inner, (hidden, hidden))
        biases, name = self._tensors.get(f"{OSS_EXPERTS}down_proj_bias"), "add_routed"
        route, taps = memory.routes[self._layer], (0, 0)
        tapped = taps if tap is None else (tap, FLOAT * tap.stride(0))
        words = (memory.total, memory.said, hidden // LANES, memory.places, route, memory.shares)
        name += "" if biases is None else "_biased"
        last = (config.experts_per_token, 0 if biases is None else biases, *tapped)
        yield Op(name, 0, 1, (*words, *last))

    def _projections(self) -> Iterator[Op]:
        memory, dim, start = self._memory, self._config.head_dim, 0
        sizes = (self._config.num_heads, self._config.num_kv_heads, self._config.num_kv_heads)
        for which, count in zip("qkv", sizes, strict=True):
            end = start + count * dim
            name = f"self_attn.{which}_proj"
            yield self._times(memory.x, name, memory.qkv[:, start:end])
            start = end
        if self._config.has_bias:
            bias = torch.cat([self._tensors[f"self_attn.{which}_proj.bias"] for which in "qkv"])
            words = (memory.qkv, FLOAT * memory.qkv.stride(0), bias, start // LANES)
            yield Op("add_bias", 0, 1, words)

    def _route(self) -> Op:
        config, memory = self._config, self._memory
        bias = router_bias_of(config, self._block)
        sizes = (len(bias) // LANES, config.num_experts, config.experts_per_token)
        out = (int(config.shares_of_all), memory.routes[self._layer], memory.shares)
        return Op("softmax_route", 0, 1, (memory.logits, bias, *sizes, *out))

    def _group(self) -> Op:
        config, memory = self._config, self._memory
        words = (memory.routes[self._layer], config.num_experts, config.experts_per_token)
        tables = (addresses(self._block.experts), memory.opening, memory.closing)
        lists = (memory.num_segments, memory.places, memory.pair_rows, memory.own)
        outs = (memory.gate_up, FLOAT * memory.gate_up.stride(0), memory.said)
        last = (FLOAT * config.hidden_size, memory.counts)
        return Op("group_experts", 1, 0, (*words, *tables, *lists, *outs, *last))

    def _products(
        self, segments: torch.Tensor, each: int, rows: torch.Tensor, sizes: tuple[int, int]
    ) -> Op:
        """`each`: segments of an expert; sizes: outputs of a segment, columns of a row of them."""
        number, expert = self._memory.num_segments, self._block.experts[0]
        like = expert.gate if each == 2 else expert.down
        if not self._rounds:
            x = self._memory.x if each == 2 else rows
            return counted_floats_op(x, like, segments, (number, each), FLOAT * sizes[1])
        width = like.shape[1] // GROUP
        words = (segments, rows, width, sizes[0] // TILE, FLOAT * sizes[1], number, each)
        return Op("mxfp4_counted", SHARES, 0, words)

    def _gate(self) -> Op:
        config, memory = self._config, self._memory
        name = ("oss_gated" if config.is_oss else "halves_gated") + "_int8" * self._rounds
        biases = self._tensors.get(f"{OSS_EXPERTS}gate_up_proj_bias")
        groups, limit = config.expert_size // GROUP, bits(config.swiglu_limit or 0.0)
        words = (memory.gate_up, memory.places, memory.routes[self._layer])
        last = (0 if biases is None else biases, memory.inner, groups, limit)
        units = config.experts_per_token * groups
        return Op(name, 0, units, (*words, *last), fewest=8)

    def _norm(self, name: str) -> Op:
        memory = self._memory
        return norm_op(memory.total, memory.x, self._tensors[name], self._eps, 1)

    def _times(self, x: torch.Tensor, name: str, out: torch.Tensor) -> Op:
        return multiply_floats_op(x, self._matrices[name], out)
