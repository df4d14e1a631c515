"""Qwen3-shaped target and draft built from the public operations alone, with random weights.

The engine has its own forward; this one says what these kernels allow as one chain.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from dspark.kvcache.page_pool import PagedPool
from dspark_kernels import (
    Filters,
    Races,
    SequentialHead,
    accept_block,
    draft_block,
    rms_norm,
    skinny_linear,
)
from dspark_kernels.accept_block import AcceptedBlock
from dspark_kernels.norm import add_rms_norm
from dspark_kernels.norm_rope_write import HeadNorms, norm_rope_write
from dspark_kernels.paged_attention import paged_attention
from dspark_kernels.paged_cache import PagedRows
from dspark_kernels.sequential_head import DraftedBlock
from gpu_parts.checks import EPS, random_head
from gpu_parts.setting import Setting, Weight, random_weight, rotary_tables, weight_rows
from gpu_parts.shapes import BLOCK_SIZE, ModelShape


class Layer(NamedTuple):
    input_norm: torch.Tensor
    qkv: Weight
    query_norm: torch.Tensor
    key_norm: torch.Tensor
    output: Weight
    mlp_norm: torch.Tensor
    gate_up: Weight
    down: Weight


@dataclass(frozen=True, slots=True)
class Weights:
    embedding: torch.Tensor  # [V, H]
    layers: list[Layer]
    norm: torch.Tensor
    head: Weight

    @classmethod
    def random(cls, shape: ModelShape, setting: Setting, kind: str = "bf16") -> "Weights":
        table = (shape.vocab_size, shape.hidden_size)
        embedding = torch.randn(table, device=setting.device, dtype=torch.bfloat16)
        layers = [random_layer(shape, setting, kind) for _ in range(shape.num_layers)]
        norm = random_norm(shape.hidden_size, setting)
        return cls(embedding, layers, norm, random_weight(kind, table, setting.device))


def random_norm(size: int, setting: Setting) -> torch.Tensor:
    return (1 + 0.1 * torch.randn(size, device=setting.device)).to(torch.bfloat16)


def random_layer(shape: ModelShape, setting: Setting, kind: str) -> Layer:
    sizes = shape.layer_matrices()
    qkv, output, gate_up, down = (
        random_weight(kind, sizes[name], setting.device) for name in ("qkv", "o", "gate+up", "down")
    )
    of_hidden = [random_norm(shape.hidden_size, setting) for _ in range(2)]
    of_heads = [random_norm(shape.head_dim, setting) for _ in range(2)]
    return Layer(of_hidden[0], qkv, *of_heads, output, of_hidden[1], gate_up, down)


class Stack:
    """Decoder layers over a paged pool of their own."""

    def __init__(
        self,
        shape: ModelShape,
        layers: list[Layer],
        norm: torch.Tensor,
        pool: PagedPool,
        rotary: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        self.shape, self.layers, self.norm = shape, layers, norm
        self.pool, self.rotary = pool, rotary

    def __call__(
        self, hidden: torch.Tensor, rows: PagedRows, tap_layers: tuple[int, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """hidden [N, H] -> the same after the last norm, and the taps [N, T * H]."""
        residual, update, taps = hidden, None, []
        for index, layer in enumerate(self.layers):
            if update is None:
                normed = rms_norm(residual, layer.input_norm, EPS)
            else:
                normed, residual = add_rms_norm(update, residual, layer.input_norm, EPS)
            if index - 1 in tap_layers:
                taps.append(residual)
            qkv = skinny_linear(normed, layer.qkv).unflatten(1, (-1, self.shape.head_dim))
            attended = self._attend(index, layer, qkv, rows)
            update = skinny_linear(attended, layer.output)
            normed, residual = add_rms_norm(update, residual, layer.mlp_norm, EPS)
            update = skinny_linear(skinny_linear(normed, layer.gate_up, gated=True), layer.down)
        assert update is not None
        normed, _ = add_rms_norm(update, residual, self.norm, EPS)
        return normed, torch.cat(taps, dim=1) if taps else None

    def append(self, features: torch.Tensor, rows: PagedRows) -> None:
        """Keys and values of context features [N, H], as a drafter takes them."""
        first = self.shape.num_heads * self.shape.head_dim
        for index, layer in enumerate(self.layers):
            fresh = skinny_linear(features, weight_rows(layer.qkv, first, layer.qkv.shape[0]))
            self._write(index, layer, fresh.unflatten(1, (-1, self.shape.head_dim)), rows)

    def _attend(self, index: int, layer: Layer, qkv: torch.Tensor, rows: PagedRows) -> torch.Tensor:
        query = self._write(index, layer, qkv, rows)
        keys, values = self.pool.layer(index)
        scale = self.shape.head_dim**-0.5
        return paged_attention(query, keys, values, self.pool.tables, rows, scale)

    def _write(self, index: int, layer: Layer, qkv: torch.Tensor, rows: PagedRows) -> torch.Tensor:
        norms = HeadNorms(layer.query_norm, layer.key_norm, EPS)
        keys, values = self.pool.layer(index)
        return norm_rope_write(qkv, keys, values, self.pool.tables, rows, self.rotary, norms)


class Target:
    """Token ids -> logits and taps."""

    def __init__(self, shape: ModelShape, weights: Weights, pool: PagedPool, length: int) -> None:
        self.embedding, self.head = weights.embedding, weights.head
        device, dtype = weights.embedding.device, weights.embedding.dtype
        rotary = rotary_tables(shape, length, device, dtype)
        self.stack = Stack(shape, weights.layers, weights.norm, pool, rotary)

    def __call__(
        self, ids: torch.Tensor, rows: PagedRows, tap_layers: tuple[int, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden, taps = self.stack(F.embedding(ids, self.embedding), rows, tap_layers)
        return skinny_linear(hidden, self.head), taps


class Draft:
    """Taps -> a block; the embedding is the target's, and so is the head in bf16."""

    def __init__(
        self,
        shape: ModelShape,
        target: Target,
        pool: PagedPool,
        setting: Setting,
        kind: str = "bf16",
    ) -> None:
        hidden = shape.hidden_size
        own = replace(shape, num_layers=shape.num_draft_layers)
        layers = [random_layer(own, setting, kind) for _ in range(own.num_layers)]
        norm = random_norm(hidden, setting)
        self.stack = Stack(own, layers, norm, pool, target.stack.rotary)
        size = (hidden, shape.num_taps * hidden)
        self.joined: Weight = random_weight(kind, size, setting.device)
        self.joined_norm = random_norm(hidden, setting)
        self.embedding = target.embedding
        self.head: Weight = target.head
        if kind != "bf16":
            self.head = random_weight(kind, (shape.vocab_size, hidden), setting.device)
        self.sequential: SequentialHead = random_head(
            "vanilla", shape, setting.device, torch.bfloat16
        )

    def extend(self, taps: torch.Tensor, rows: PagedRows) -> None:
        joined = skinny_linear(taps, self.joined)
        self.stack.append(rms_norm(joined, self.joined_norm, EPS), rows)

    def propose(self, anchor: torch.Tensor, rows: PagedRows, state: "RoundState") -> DraftedBlock:
        """anchor [1]."""
        ids = torch.cat([anchor, state.masks])
        hidden, _ = self.stack(F.embedding(ids, self.embedding), rows)
        logits = skinny_linear(hidden, self.head)
        return draft_block(
            logits.unsqueeze(0), hidden.unsqueeze(0), anchor, self.sequential,
            state.filters.temperature, state.seeds, state.lengths,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RoundState:
    """What stays on the device between the rounds of one greedy request."""

    masks: torch.Tensor
    filters: Filters
    races: Races
    seeds: torch.Tensor
    lengths: torch.Tensor
    first_rows: torch.Tensor
    num_drafts: torch.Tensor
    uniforms: torch.Tensor

    @classmethod
    def of(cls, device: torch.device, length: int, num_drafts: int = BLOCK_SIZE) -> "RoundState":
        def whole(number: int) -> torch.Tensor:
            return torch.full((1,), number, device=device)

        filters = Filters(
            torch.zeros(1, device=device), whole(0).int(), torch.ones(1, device=device)
        )
        return cls(
            masks=torch.zeros(BLOCK_SIZE - 1, dtype=torch.int64, device=device),
            filters=filters,
            races=Races(whole(0).bool(), whole(0)),
            seeds=whole(1),
            lengths=whole(length),
            first_rows=whole(0),
            num_drafts=whole(num_drafts),
            uniforms=torch.rand(1, num_drafts + 1, device=device),
        )

    def accept(self, drafted: DraftedBlock, logits: torch.Tensor) -> AcceptedBlock:
        return accept_block(
            drafted.token_ids, drafted.logits, drafted.log_sums, logits, self.first_rows,
            self.num_drafts, self.filters, self.races, self.uniforms, self.lengths,
        )  # fmt: skip
