"""A layer of DeepSeek-V4 as launches on a card: the operations of layer_program, to the bit."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

import torch

from dspark.checkpoints.deepseek_v4_cache_layout import (
    WINDOW,
    compressors,
    entry_places,
    ring_places,
)
from dspark.checkpoints.deepseek_v4_target import HASH_TABLE
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.models.deepseek_v4.card_memory import CardBlock, CardMemory
from dspark_kernels.deepseek_v4.compressor import (
    Entries,
    Ring,
    add_by_position,
    close_windows,
    keep_rows,
)
from dspark_kernels.deepseek_v4.file_matrix import multiply_rows
from dspark_kernels.deepseek_v4.gated_rows import gated_rows
from dspark_kernels.deepseek_v4.indexer import index_choose, index_scores
from dspark_kernels.deepseek_v4.latent_attention import latent_attend
from dspark_kernels.deepseek_v4.norm_turn import norm_turn
from dspark_kernels.deepseek_v4.route import route_rows
from dspark_kernels.deepseek_v4.streams import open_streams, write_back


class Step(NamedTuple):
    """rows int64 [N, words]; turns: cos and sin of layers without and with compression; halves: all
    pages; scores [N, most entries] of the indexer, None where every row sees few."""

    rows: torch.Tensor
    turns: Sequence[tuple[torch.Tensor, torch.Tensor]]
    halves: Sequence[torch.Tensor]
    scores: torch.Tensor | None


class FeedRows(Protocol):
    """Adds what routed experts say of x [N, H] to out [N, H], by route and shares [N, k]. A pass
    begins and, whatever becomes of it, is finished or cancelled. `key`: stands for the addresses
    that its kernels get during a pass, None if it waits for the card and cannot be captured."""

    @property
    def key(self) -> Hashable | None: ...

    def begin(self, num_rows: int) -> None: ...

    def finish(self) -> None: ...

    def cancel(self, error: BaseException) -> None: ...

    def close(self) -> None: ...

    def __call__(
        self,
        layer: int,
        x: torch.Tensor,
        route: torch.Tensor,
        shares: torch.Tensor,
        out: torch.Tensor,
    ) -> None: ...


class CardLayer:
    def __init__(self, config: DeepseekV4TargetConfig, layer: int, block: CardBlock) -> None:
        self._config, self._layer = config, layer
        self._matrices, self._tensors, self._factors = block
        self._rings, self._entries = ring_places(config)[0], entry_places(config)[0]
        table = self._tensors.get(HASH_TABLE)
        self._by_token = None if table is None else table.long().contiguous()
        self._ratio, self._selects = config.ratios[layer], config.selects[layer]

    def __call__(
        self,
        step: Step,
        memory: CardMemory,
        num_rows: int,
        feed: FeedRows,
        tap: torch.Tensor | None,
    ) -> None:
        """Streams [N, 4, H] of memory -> the same; their mean into tap [N, H]."""
        own = _Rows(memory, num_rows)
        self._open(own, "attn")
        self._attend(own, step)
        write_back(own.streams, own.y, own.mixes, None)
        self._open(own, "ffn")
        config, shared = self._config, "ffn.shared_experts.{}.weight"
        route = memory.routes[self._layer, :num_rows]
        self._times(own.x, "ffn.gate.weight", own.logits)
        biases = None if self._by_token is not None else self._tensors["ffn.gate.bias"]
        scale = config.routed_scale
        route_rows(own.logits, step.rows, biases, self._by_token, scale, route, own.shares)
        self._times(own.x, shared.format("w1"), own.gate)
        self._times(own.x, shared.format("w3"), own.up)
        gated_rows(own.gate, own.up, own.gated, config.swiglu_limit)
        self._times(own.gated, shared.format("w2"), own.y)
        feed(self._layer, own.x, route, own.shares, own.y)
        write_back(own.streams, own.y, own.mixes, tap)

    def _open(self, own: "_Rows", name: str) -> None:
        config = self._config
        norm_turn(own.streams.flatten(1), own.units, None, config.rms_norm_eps)
        multiply_rows(own.units, self._matrices[f"hc_{name}_fn"], own.projected)
        weight, eps = self._tensors[f"{name}_norm.weight"], (config.stream_eps, config.rms_norm_eps)
        factors, steps = self._factors[name], config.sinkhorn_steps
        open_streams(own.streams, own.projected, factors, weight, own.x, own.mixes, steps, *eps)

    def _attend(self, own: "_Rows", step: Step) -> None:
        config, tensors, eps = self._config, self._tensors, self._config.rms_norm_eps
        turns = step.turns[self._ratio > 0]
        turn = (step.rows, *turns)
        self._times(own.x, "attn.wq_a.weight", own.low)
        self._times(own.x, "attn.wkv.weight", own.keys)
        norm_turn(own.low, own.low, tensors["attn.q_norm.weight"], eps)
        norm_turn(own.keys, own.keys, tensors["attn.kv_norm.weight"], eps, 1, turn)
        self._times(own.low, "attn.wq_b.weight", own.queries)
        norm_turn(own.queries, own.queries, None, eps, config.num_heads, turn)
        names = compressors(config, self._layer)
        for name, width in names.items():
            self._compress(own, step, name, width)
        selects = self._selects and step.scores is not None
        if selects:
            self._select(own, step)
        sinks = tensors["attn.attn_sink"]
        entries = self._entries_of("compressor", step) if self._ratio else None
        chosen = own.chosen if selects else None
        latent_attend(
            own.queries, own.keys, step.rows, self._ring(WINDOW), sinks, entries,
            chosen, turns, own.scratch, own.attended,
        )  # fmt: skip
        keep_rows(own.keys, step.rows, self._ring(WINDOW))
        for name in names:
            keep_rows(self._raw(own, name), step.rows, self._ring(name))
        output = self._matrices["attn.wo_a.weight"]
        multiply_rows(own.attended, output, own.grouped, config.output_groups)
        self._times(own.grouped, "attn.wo_b.weight", own.y)

    def _compress(self, own: "_Rows", step: Step, name: str, width: int) -> None:
        """Values and gates of a compressor, gates by their place in the window; closes windows."""
        columns, prefix = width * (1 + self._selects), f"attn.{name}"
        raw = self._raw(own, name)
        gates = raw[:, columns:]
        self._times(own.x, f"{prefix}.wkv.weight", raw[:, :columns])
        self._times(own.x, f"{prefix}.wgate.weight", gates)
        add_by_position(gates, step.rows, self._tensors[f"{prefix}.ape"])
        close_windows(
            raw, step.rows, self._ring(name), self._entries_of(name, step),
            self._tensors[f"{prefix}.norm.weight"], self._config.rms_norm_eps, step.turns[1],
            1 + self._selects,
        )  # fmt: skip

    def _select(self, own: "_Rows", step: Step) -> None:
        """The indexer's choice of entries."""
        config, heads, dim = self._config, self._config.index_heads, self._config.index_dim
        assert step.scores is not None
        queries = own.index_queries
        self._times(own.low, "attn.indexer.wq_b.weight", queries)
        turn = (step.rows, *step.turns[1])
        norm_turn(queries, queries, None, 0.0, heads, turn, norms=False)
        self._times(own.x, "attn.indexer.weights_proj.weight", own.index_weights)
        keys, top = self._entries_of("indexer.compressor", step), config.index_top
        scale = (dim * heads) ** -0.5
        index_scores(queries, own.index_weights, step.rows, keys, scale, top, step.scores)
        index_choose(step.scores, step.rows, self._ratio, own.chosen)

    def _raw(self, own: "_Rows", name: str) -> torch.Tensor:
        """[N, values and gates]."""
        return own.raw(name, self._rings[self._layer, name].width)

    def _ring(self, name: str) -> Ring:
        return Ring(*self._rings[self._layer, name])

    def _entries_of(self, name: str, step: Step) -> Entries:
        place = self._entries[self._layer, name]
        return Entries(step.halves[place.half], place.start, self._ratio, place.width)

    def _times(self, x: torch.Tensor, name: str, out: torch.Tensor) -> None:
        multiply_rows(x, self._matrices[name], out)


class _Rows:
    """The first rows of a pass's memory, by the names that it has there."""

    def __init__(self, memory: CardMemory, num_rows: int) -> None:
        self._memory, self._num_rows = memory, num_rows

    def __getattr__(self, name: str) -> torch.Tensor:
        whole: torch.Tensor = getattr(self._memory, name)
        return whole[: self._num_rows]

    def raw(self, name: str, width: int) -> torch.Tensor:
        return self._memory.raw[name][: self._num_rows, :width]
