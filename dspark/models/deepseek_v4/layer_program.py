"""A layer of DeepSeek-V4 as operations of one native program: what the modules beside this one do
in torch, within their rounding, a row with the same bits in any company."""

from collections.abc import Iterator

import torch

from dspark.checkpoints.deepseek_v4_cache_layout import (
    WINDOW,
    compressors,
    entry_places,
    ring_places,
)
from dspark.checkpoints.deepseek_v4_target import HASH_TABLE, Block
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.models.deepseek_v4.pass_memory import PassMemory
from dspark.models.expert_store import addresses
from dspark_kernels.cpu.clamped_swiglu import clamped_swiglu_op
from dspark_kernels.cpu.deepseek_v4 import attention_text, indexer_text
from dspark_kernels.cpu.deepseek_v4.routing_text import EXPERT_WORDS, SHARES
from dspark_kernels.cpu.deepseek_v4.rows_text import RUN
from dspark_kernels.cpu.deepseek_v4.step import STEP
from dspark_kernels.cpu.deepseek_v4.streams_text import MIXES, STREAMS
from dspark_kernels.cpu.deepseek_v4.text import bits
from dspark_kernels.cpu.float_matrix import multiply_floats_op
from dspark_kernels.cpu.float_text import LANES
from dspark_kernels.cpu.int8_rows import GROUP
from dspark_kernels.cpu.mxfp4 import TILE
from dspark_kernels.cpu.runtime import Op

FLOAT = 4
NOTHING = 0  # in place of an address


def is_supported(config: DeepseekV4TargetConfig) -> bool:
    """Whether sizes are whole chunks of the operations."""
    chunks = (config.hidden_size, config.query_rank, config.index_dim, config.expert_size)
    heads = (config.num_heads, config.index_heads)
    return (
        config.num_streams == STREAMS
        and not any(size % LANES for size in (*chunks, config.rope_dim))
        and not any(size % GROUP for size in (config.hidden_size, config.expert_size))
        and config.head_dim % (LANES * attention_text.TOGETHER) == 0
        and not any(count % attention_text.HEADS for count in heads)
    )


class LayerProgram:
    """Builds the operations of one layer. `selects`: whether entries may be more than an indexer
    lets a row attend to; `is_draft`: a head's layer rounds keys and does not keep a block's."""

    def __init__(
        self,
        config: DeepseekV4TargetConfig,
        layer: int,
        block: Block,
        memory: PassMemory,
        selects: bool,
        is_draft: bool = False,
    ) -> None:
        self._is_draft = is_draft
        self._config, self._layer, self._memory = config, layer, memory
        self._matrices, self._tensors, self._experts = block.matrices, block.tensors, block.experts
        self._selects = selects and config.selects[layer]
        self._rings, self._entries = ring_places(config)[0], entry_places(config)[0]
        self._cos = STEP.index("compressed_cos" if config.ratios[layer] else "window_cos")
        self._eps = bits(config.rms_norm_eps)

    def until_route(self) -> Iterator[Op]:
        """From the streams to the experts of every row, and what the shared expert says."""
        memory = self._memory
        yield from self._open("attn")
        yield from self._attend()
        yield self._write_back()
        yield from self._open("ffn")
        yield self._times(memory.x, "ffn.gate.weight", memory.logits[:, 0])
        yield self._route()
        shared = "ffn.shared_experts.{}.weight"
        for name, out in (("w1", memory.gate), ("w3", memory.up)):
            yield self._times(memory.x, shared.format(name), out)
        chunks = self._config.expert_size // LANES
        words = (memory.gate, memory.up, memory.gated, bits(self._config.swiglu_limit))
        yield Op("gated", 0, chunks, words, fewest=8)
        yield self._times(memory.gated, shared.format("w2"), memory.y)

    def feed_experts(self) -> Iterator[Op]:
        """Routed experts, on rows of 8 bits."""
        config, memory = self._config, self._memory
        hidden, inner = config.hidden_size, config.expert_size
        yield self._group()
        words: tuple[torch.Tensor | int, ...] = (memory.x, memory.rounded.data)
        yield Op("round_int8", 0, hidden // GROUP, words, fewest=8)
        words = (memory.opening, memory.rounded.data, hidden // GROUP, inner // TILE)
        words += (2 * FLOAT * inner, memory.num_segments, 2)
        yield Op("mxfp4_counted", SHARES, 0, words)
        swiglu = clamped_swiglu_op(memory.gate_up, memory.inner, config.swiglu_limit)
        yield swiglu._replace(units_by_row=swiglu.units_by_row * config.experts_per_token)
        words = (memory.closing, memory.inner.data, inner // GROUP, hidden // TILE)
        words += (FLOAT * hidden, memory.num_segments, 1)
        yield Op("mxfp4_counted", SHARES, 0, words)

    def after_experts(self, tap: torch.Tensor | None) -> Iterator[Op]:
        """`tap` [N, H], rows may be further apart: for the mean of the streams."""
        config, memory = self._config, self._memory
        chunks = config.hidden_size // LANES
        words: tuple[torch.Tensor | int, ...] = (memory.y, memory.said, FLOAT * config.hidden_size)
        words += (memory.places, memory.shares, config.experts_per_token, chunks)
        yield Op("add_experts", 0, 1, words)
        yield self._write_back()
        if tap is not None:
            yield Op("mean_streams", 0, 1, (memory.streams, tap, FLOAT * tap.stride(0), chunks))

    def _open(self, name: str) -> Iterator[Op]:
        config, memory, tensors = self._config, self._memory, self._tensors
        yield units_op(config, memory)
        yield self._times(memory.units, f"hc_{name}_fn", memory.projected)
        scales = tensors[f"hc_{name}_scale"].repeat_interleave(
            torch.tensor([STREAMS, STREAMS, STREAMS**2])
        )
        factors = stream_factors(scales, tensors[f"hc_{name}_base"])
        words = (memory.streams, memory.projected, factors, tensors[f"{name}_norm.weight"])
        sizes = (config.hidden_size // LANES, config.sinkhorn_steps, bits(config.stream_eps))
        yield Op("open_streams", 0, 1, (*words, memory.x, memory.mixes, *sizes, self._eps))

    def _write_back(self) -> Op:
        memory = self._memory
        words = (memory.streams, memory.y, memory.mixes, self._config.hidden_size // LANES)
        return Op("write_back_streams", 0, 1, words)

    def _attend(self) -> Iterator[Op]:
        config, memory, tensors = self._config, self._memory, self._tensors
        names = compressors(config, self._layer)
        yield self._times(memory.x, "attn.wq_a.weight", memory.low)
        yield self._times(memory.x, "attn.wkv.weight", memory.keys)
        for name, width in names.items():
            yield from self._raw(name, width)
        yield self._norm(memory.low, tensors["attn.q_norm.weight"])
        yield from self._finish(memory.keys)
        yield self._times(memory.low, "attn.wq_b.weight", memory.queries)
        yield self._norm(memory.queries, memory.ones, config.num_heads)
        yield self._rotate(memory.queries, config.num_heads)
        for name, width in names.items():
            yield self._close_windows(name, width)
        if self._selects:
            yield from self._select()
        yield self._latent_attend()
        if not self._is_draft:
            yield self._keep(WINDOW, memory.keys)
        for name in names:
            yield self._keep(name, memory.raw[name])
        rank, groups = config.output_rank, config.output_groups
        weight, wide = self._matrices["attn.wo_a.weight"], memory.attended.shape[1] // groups
        for group in range(groups):
            of_group = memory.attended[:, group * wide : (group + 1) * wide]
            out = memory.grouped[:, group * rank : (group + 1) * rank]
            yield multiply_floats_op(of_group, weight.rows(group * rank, (group + 1) * rank), out)
        yield self._times(memory.grouped, "attn.wo_b.weight", memory.y)

    def keep_keys(self, x: torch.Tensor, keys: torch.Tensor) -> Iterator[Op]:
        """Of rows x [N, H] by way of `keys` [N, D] into their rings, and nothing else."""
        yield self._times(x, "attn.wkv.weight", keys)
        yield from self._finish(keys)
        yield self._keep(WINDOW, keys)

    def _finish(self, keys: torch.Tensor) -> Iterator[Op]:
        config = self._config
        yield self._norm(keys, self._tensors["attn.kv_norm.weight"])
        yield self._rotate(keys, 1)
        if self._is_draft:  # as in training: what RoPE leaves alone, as if stored in 8 bits
            runs = (config.head_dim - config.rope_dim) // RUN
            yield Op("round_e4m3", 0, 1, (keys, FLOAT * keys.stride(0), runs))

    def _raw(self, name: str, width: int) -> Iterator[Op]:
        """Values and gates of a compressor, gates by their place in the window."""
        columns = width * (1 + self._config.selects[self._layer])
        raw, prefix = self._memory.raw[name], f"attn.{name}"
        gates = raw[:, columns : 2 * columns]
        yield self._times(self._memory.x, f"{prefix}.wkv.weight", raw)
        yield self._times(self._memory.x, f"{prefix}.wgate.weight", gates)
        words = (gates, FLOAT * raw.stride(0), self._tensors[f"{prefix}.ape"], columns // LANES)
        yield Op("add_by_position", 0, 1, (*words, self._config.ratios[self._layer]))

    def _close_windows(self, name: str, width: int) -> Op:
        config, raw, ring = self._config, self._memory.raw[name], self._rings[self._layer, name]
        words = (raw, FLOAT * raw.stride(0), FLOAT * ring.start, ring.cells, width // LANES)
        halves = 1 + config.selects[self._layer]
        weight = self._tensors[f"attn.{name}.norm.weight"]
        sizes = (config.ratios[self._layer], halves, weight, self._eps)
        turn = (config.rope_dim // LANES, self._cos)
        return Op("close_windows", 0, 1, (*words, *sizes, *self._entry_words(name), *turn))

    def _entry_words(self, name: str) -> tuple[int, int]:
        place = self._entries[self._layer, name]
        return STEP.index("half1" if place.half else "half0"), FLOAT * place.start

    def _select(self) -> Iterator[Op]:
        """The indexer's choice of entries."""
        config, memory = self._config, self._memory
        dim, heads, top = config.index_dim, config.index_heads, config.index_top
        queries, ratio = memory.index_queries, config.ratios[self._layer]
        yield self._times(memory.low, "attn.indexer.wq_b.weight", queries)
        yield self._rotate(queries, heads)
        name = "attn.indexer.weights_proj.weight"
        yield self._times(memory.x, name, memory.index_weights)
        words: tuple[torch.Tensor | int, ...] = (queries, FLOAT * queries.stride(0))
        words += (memory.index_weights, FLOAT * heads, dim // LANES, heads // indexer_text.HEADS)
        words += (bits((dim * heads) ** -0.5), ratio, top, *self._entry_words("indexer.compressor"))
        yield Op("index_scores", 0, indexer_text.PARTS, words)
        yield Op("index_choose", 0, 1, (memory.chosen, ratio, top))

    def _latent_attend(self) -> Op:
        config, memory = self._config, self._memory
        ring, ratio = self._rings[self._layer, WINDOW], config.ratios[self._layer]
        groups = config.num_heads // attention_text.HEADS
        where = self._entry_words("compressor") if ratio else (STEP.index("half0"), 0)
        words: tuple[torch.Tensor | int, ...] = (memory.queries, FLOAT * memory.queries.stride(0))
        words += (memory.keys, FLOAT * ring.start, ring.cells)
        words += (config.head_dim // LANES, groups, self._tensors["attn.attn_sink"])
        words += (memory.attended, bits(config.head_dim**-0.5), ratio, *where, memory.chosen)
        top = config.index_top if config.selects[self._layer] else config.max_positions
        words += (top, config.rope_dim // LANES, self._cos)
        return Op("latent_attend", 0, groups, words)

    def _keep(self, name: str, rows: torch.Tensor) -> Op:
        ring = self._rings[self._layer, name]
        sizes = (FLOAT * ring.start, ring.cells, ring.width // LANES)
        return Op("keep_rows", 0, 1, (rows, FLOAT * rows.stride(0), *sizes))

    def _route(self) -> Op:
        config, memory, count = self._config, self._memory, self._config.num_experts
        chunks, table = memory.logits.shape[2] // LANES, self._tensors.get(HASH_TABLE)
        biases: torch.Tensor | int = NOTHING
        by_token: torch.Tensor | int = NOTHING
        if table is not None:
            by_token = table.long().contiguous()
        else:
            biases = torch.zeros(memory.logits.shape[2])
            biases[:count] = self._tensors["ffn.gate.bias"]
        words = (memory.logits, biases, by_token, chunks, count, config.experts_per_token)
        out = (bits(config.routed_scale), memory.routes[self._layer], memory.shares)
        return Op("route_rows", 0, 1, (*words, *out))

    def _group(self) -> Op:
        config, memory = self._config, self._memory
        where = addresses(self._experts)
        assert where.shape[1] == EXPERT_WORDS
        words: tuple[torch.Tensor | int, ...] = (memory.routes[self._layer], config.num_experts)
        words += (config.experts_per_token, where, memory.opening, memory.closing)
        words += (memory.num_segments, memory.places, memory.pair_rows, memory.own)
        words += (memory.gate_up, FLOAT * memory.gate_up.stride(0), memory.said)
        return Op("group_experts", 1, 0, (*words, FLOAT * config.hidden_size, memory.counts))

    def _norm(self, x: torch.Tensor, weight: torch.Tensor, parts: int = 1) -> Op:
        return norm_op(x, x, weight, self._eps, parts)

    def _rotate(self, x: torch.Tensor, parts: int) -> Op:
        config, size = self._config, x.shape[1] // parts
        before = FLOAT * (size - config.rope_dim)
        words = (x, FLOAT * x.stride(0), parts, FLOAT * size, before)
        return Op("rotate_rows", 0, parts, (*words, config.rope_dim // LANES, self._cos))

    def _times(self, x: torch.Tensor, name: str, out: torch.Tensor) -> Op:
        return multiply_floats_op(x, self._matrices[name], out)


def units_op(config: DeepseekV4TargetConfig, memory: PassMemory) -> Op:
    """Streams as one row each, divided by their root mean square."""
    streams = memory.streams.flatten(1)
    return norm_op(streams, memory.units, memory.ones, bits(config.rms_norm_eps), 1)


def norm_op(x: torch.Tensor, out: torch.Tensor, weight: torch.Tensor, eps: int, parts: int) -> Op:
    chunks = x.shape[1] // parts // LANES
    words = (x, FLOAT * x.stride(0), out, FLOAT * out.stride(0), weight, chunks, eps, parts)
    return Op("norm_rows", 0, parts, words)


def stream_factors(scales: torch.Tensor, biases: torch.Tensor) -> torch.Tensor:
    """Of projections [24] or [4] -> [2, 32], as open_streams reads them."""
    factors = torch.zeros(2, MIXES)
    factors[0, : len(scales)], factors[1, : len(biases)] = scales, biases
    return factors
