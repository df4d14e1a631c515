"""DSpark for Triton: fused weights over pages, the sequential head as one operation."""

from collections.abc import MutableMapping, Sequence
from typing import Any, ClassVar

import torch

from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.config import DraftWeights, KVFormat
from dspark.drafters.dspark import DSparkDrafter, DSparkSlot
from dspark.drafters.head_drafter import TargetTables
from dspark.drafters.vocabulary import FullVocabulary, OutputHead, soft_cap
from dspark.kvcache.caches import CachePass, HeadShape, PagedCache
from dspark.kvcache.page_pool import PagedPool
from dspark.kvcache.row_pool import KVSlot
from dspark.models.decoder import Decoder, FusedLayer
from dspark.models.draft_layer import DraftLayer
from dspark.models.dspark_head import DSparkHead
from dspark_kernels import (
    DraftedBlock,
    EmbeddedBlocks,
    HeadNorms,
    QuantizedWeight,
    SequentialHead,
    SkinnyLinear,
    draft_block,
    rms_norm,
    skinny_linear,
)
from dspark_kernels.cpu.weight_table import Table
from dspark_kernels.quantized_weight import quantize_fp8, quantize_int8

Weight = torch.Tensor | QuantizedWeight


class PagedDSparkDrafter(DSparkDrafter):
    """Embedding and output head are the target's, unless `weights` asks for a smaller copy."""

    takes_small_weights: ClassVar[bool] = True
    embedding_scale: float = 1.0  # of a block's inputs

    @classmethod
    def supports(cls, config: DSparkConfig, tables: TargetTables) -> bool:  # type: ignore[override]
        """Beside a target on pages, a head of Qwen3's layers that drafts any token."""
        return tables.is_paged and config.family == "qwen3" and config.draft_vocab_size is None

    @classmethod
    def _options(cls, tables: TargetTables, weights: DraftWeights) -> dict[str, Any]:
        return {"weights": weights, "kv": tables.kv}

    def __init__(
        self,
        config: DSparkConfig,
        tensors: MutableMapping[str, torch.Tensor],
        embedding: Table,
        output_head: OutputHead,
        *,
        draft_vocabulary: torch.Tensor | None = None,
        weights: DraftWeights = "auto",
        kv: KVFormat = "auto",
    ) -> None:
        super().__init__(config, tensors, embedding, output_head, prepack=False)
        head: DSparkHead = self._head
        sizes = (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim)
        window = config.sliding_window or 0
        shape = HeadShape(*sizes, scale=config.attention_scale, window=window)
        self.cache = PagedCache(shape, self._rotary, self.device, self.dtype, kv)
        self._joined = SkinnyLinear(stored_as(head.fc.weight, weights), prepack=False)
        layers = [self._fused(layer, weights) for layer in self._layers()]
        norm, eps = head.norm.weight.detach(), config.rms_norm_eps
        self.decoder = Decoder(layers, norm, head_dim=config.head_dim, eps=eps)
        del head.layers, head.fc  # their weights live on in the fused ones
        assert isinstance(self._vocabulary, FullVocabulary)
        whole = self._vocabulary.output_weight
        assert isinstance(whole, torch.Tensor), "a target with pages holds numbers"
        self.output_weight = stored_as(whole, weights)
        self._prepare_choices(weights)
        self.draft_vocabulary = draft_vocabulary
        self.block_rows, self.has_confidence = config.block_rows, config.has_confidence
        self.calibration = self._calibrator.table
        masks = torch.full((1, 1), config.mask_token_id, device=self.device)
        self._masks = masks.expand(1, config.block_rows - 1)
        self._tap_places: torch.Tensor | None = None

    def _fused(self, layer: DraftLayer, weights: DraftWeights) -> FusedLayer:
        return fuse(layer, weights)

    def _prepare_choices(self, weights: DraftWeights) -> None:
        """What chooses the tokens of a block, left to right."""
        self._sequential = _sequential(self._head, weights)

    def choose_taps(self, tap_layers: Sequence[int]) -> None:
        """As DeviceDrafter.choose_taps."""
        width = torch.arange(self.config.hidden_size, device=self.device)
        places = [list(tap_layers).index(layer) for layer in self.target_layer_ids]
        self._tap_places = torch.cat([place * len(width) + width for place in places])

    @property
    def _contexts(self) -> PagedPool:
        return self.cache.pool

    def close(self, slot: DSparkSlot) -> None:
        slot.context.close()

    def extend(
        self,
        slots: Sequence[DSparkSlot],
        token_ids: Sequence[torch.Tensor],
        taps: Sequence[torch.Tensor],
    ) -> None:
        """As Drafter.extend."""
        sizes = [tap.shape[0] for tap in taps]
        self.append(torch.cat(list(taps)), self.cache.at(_contexts(slots), sizes, causal=False))
        for slot, size in zip(slots, sizes, strict=True):
            slot.context.length += size

    def append(self, taps: torch.Tensor, rows: CachePass) -> None:
        """As DeviceDrafter.append: keys and values of the context features of taps [N, T * H]."""
        if self._tap_places is not None:
            taps = taps.index_select(1, self._tap_places)
        norm = self._head.hidden_norm
        self.decoder.write(rms_norm(self._joined(taps), norm.weight, norm.eps), rows)

    def _backbone(self, slots: Sequence[DSparkSlot], anchors: torch.Tensor) -> torch.Tensor:
        sizes = [self.config.block_rows] * len(slots)
        return self.hidden(anchors, self.cache.at(_contexts(slots), sizes, causal=False))

    def hidden(self, anchors: torch.Tensor, rows: CachePass) -> torch.Tensor:
        """anchors [R] -> hidden states of all block rows [R * block_rows, H], after the final
        norm."""
        assert isinstance(self._embedding, torch.Tensor)
        masks = self._masks.expand(len(anchors), -1)
        rest = masks if masks.shape[1] else None
        blocks = EmbeddedBlocks(self._embedding, anchors, rest, self.embedding_scale)
        hidden, _ = self.decoder.run(blocks, rows)
        return hidden

    def draft(
        self,
        anchors: torch.Tensor,
        rows: CachePass,
        temperatures: torch.Tensor,
        seeds: torch.Tensor,
        positions: torch.Tensor,
        logit_mask: torch.Tensor | None = None,
    ) -> DraftedBlock:
        """As DeviceDrafter.draft."""
        hidden = self.hidden(anchors, rows).unflatten(0, (-1, self.config.block_rows))
        hidden = hidden[:, -self.block_size :]
        logits = skinny_linear(self._before_output(hidden).flatten(0, 1), self.output_weight)
        logits = soft_cap(logits, self.config.final_logit_softcapping)
        logits = logits.unflatten(0, (-1, self.block_size))
        if logit_mask is not None:
            logits = logits + logit_mask.unsqueeze(1)
        return self._chosen(logits, hidden, anchors, temperatures, seeds, positions)

    def _before_output(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the output head reads, of hidden states [R, K, H]."""
        return hidden

    def _chosen(
        self,
        logits: torch.Tensor,
        hidden: torch.Tensor,
        anchors: torch.Tensor,
        temperatures: torch.Tensor,
        seeds: torch.Tensor,
        positions: torch.Tensor,
    ) -> DraftedBlock:
        """As draft_block."""
        drawn = (temperatures, seeds, positions)
        return draft_block(logits, hidden, anchors, self._sequential, *drawn)


def _contexts(slots: Sequence[DSparkSlot]) -> list[KVSlot]:
    return [slot.context for slot in slots]


def stored_as(weight: Weight, weights: DraftWeights) -> Weight:
    if isinstance(weight, QuantizedWeight):  # a quantized target's output head
        return weight
    weight = weight.detach()
    if weights == "int8":
        return quantize_int8(weight)
    return quantize_fp8(weight) if weights == "fp8" else weight


def fuse(layer: DraftLayer, weights: DraftWeights) -> FusedLayer:
    attention, mlp = layer.self_attn, layer.mlp

    def product(*linears: torch.nn.Linear) -> SkinnyLinear:
        weight = torch.cat([linear.weight.detach() for linear in linears])
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        return SkinnyLinear(
            stored_as(weight, weights), torch.cat(biases) if biases else None, prepack=False
        )

    qkv = product(attention.q_proj, attention.k_proj, attention.v_proj)
    num_queries = len(attention.q_proj.weight)
    query_norm, key_norm = attention.q_norm, attention.k_norm
    return FusedLayer(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=qkv,
        keys_values=qkv.rows(num_queries) or product(attention.k_proj, attention.v_proj),
        head_norms=HeadNorms(query_norm.weight.detach(), key_norm.weight.detach(), query_norm.eps),
        output=product(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=product(mlp.gate_proj, mlp.up_proj),
        down=product(mlp.down_proj),
    )


def _sequential(head: DSparkHead, weights: DraftWeights) -> SequentialHead:
    """W2, which every step reads, is int8 with the rest; fp8 leaves it as it is."""
    tensors: dict[str, Any] = {}
    markov, confidence = head.markov_head, head.confidence_head
    if markov is not None:
        gate = getattr(markov, "gate_proj", None) or getattr(markov, "joint_proj", None)
        w2 = markov.markov_w2.weight.detach()
        tensors["w1"] = markov.markov_w1.weight.detach()
        tensors["w2"] = quantize_int8(w2) if weights == "int8" else w2
        if gate is not None:
            tensors |= {"gate_weight": gate.weight.detach(), "gate_bias": gate.bias.detach()}
    if confidence is not None:
        tensors["confidence_weight"] = confidence.proj.weight.detach()
        tensors["confidence_bias"] = confidence.proj.bias.detach()
    return SequentialHead(head.config.markov_type, **tensors)
