"""The decoder that every dense model here runs: pre-norm attention and SwiGLU, matrices fused.

A target, a drafter on pages and the GPU benchmark are the same layers with other weights.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from dspark.kvcache.caches import CachePass
from dspark_kernels import (
    BlockFilter,
    EmbeddedBlocks,
    HeadNorms,
    ResidualStream,
    SkinnyLinear,
    rms_norm,
)
from dspark_kernels.persistent_layer import is_persistent, persistent_layer
from dspark_kernels.persistent_layer_call import LayerWeights

Move = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """Weights of one layer. Norms of queries and keys are Qwen3's.

    qkv [(heads + 2 kv_heads) * D, H], gate_up [2 * I, H] with the gate's rows first. `keys_values`
    are a drafter's alone: of context features, which ask nothing. So are the filters around
    attention and MLP: DFlash 2's.
    """

    input_norm: torch.Tensor
    qkv: SkinnyLinear
    head_norms: HeadNorms | None
    output: SkinnyLinear
    mlp_norm: torch.Tensor
    gate_up: SkinnyLinear
    down: SkinnyLinear
    keys_values: SkinnyLinear | None = None
    attention_filter: BlockFilter | None = None
    mlp_filter: BlockFilter | None = None

    def weights(self) -> LayerWeights | None:
        """For a kernel of the whole layer; None with filters, biases or prepacked products."""
        products = (self.qkv, self.output, self.gate_up, self.down)
        if self.attention_filter or self.mlp_filter:
            return None
        if any(each.bias is not None or each.weight is None for each in products):
            return None
        qkv, output, gate_up, down = (each.weight for each in products)
        return LayerWeights(
            self.input_norm, qkv, self.head_norms, output, self.mlp_norm, gate_up, down
        )

    def moved(self, move: Move) -> "FusedLayer":
        """The same layer of other tensors; its products must not be prepacked."""
        tensors: dict[str, Any] = {
            "input_norm": move(self.input_norm),
            "mlp_norm": move(self.mlp_norm),
        }
        if (norms := self.head_norms) is not None:
            tensors["head_norms"] = HeadNorms(move(norms.query), move(norms.key), norms.eps)
        for name in ("qkv", "output", "gate_up", "down", "keys_values"):
            if (linear := getattr(self, name)) is not None:
                tensors[name] = linear.moved(move)
        return replace(self, **tensors)


class Decoder:
    """Layers in their order and the final norm; `layers` decides where their weights are stored
    (models/placement.py)."""

    def __init__(
        self, layers: Iterable[FusedLayer], final_norm: torch.Tensor, *, head_dim: int, eps: float
    ) -> None:
        self.layers, self._final_norm = layers, final_norm
        self._head_dim, self._eps = head_dim, eps

    def run(
        self, blocks: EmbeddedBlocks, rows: CachePass, tap_layers: tuple[int, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of N rows -> hidden states [N, H] after the final norm, taps [N, T * H].

        Tap -1 are the embeddings.
        """
        taps = blocks.table.new_empty(blocks.num_rows, len(tap_layers), blocks.table.shape[1])
        tap_of = dict(zip(tap_layers, taps.unbind(1), strict=True))
        stream: EmbeddedBlocks | ResidualStream = blocks
        index = -1
        for index, layer in enumerate(self.layers):
            tap = tap_of.pop(index - 1, None)
            if (whole := self._whole_layer(stream, layer, rows, index, tap)) is not None:
                stream = whole
                continue
            normed, total = stream.normed(layer.input_norm, self._eps, tap)

            def attended(x: torch.Tensor, index: int = index, own: FusedLayer = layer) -> Any:
                return rows(index, self._by_head(own.qkv(x)), own.head_norms)

            total = _added(total, normed, layer.attention_filter, attended, layer.output)
            normed, total = total.normed(layer.mlp_norm, self._eps)
            stream = _added(total, normed, layer.mlp_filter, layer.gate_up.gated, layer.down)
        normed, _ = stream.normed(self._final_norm, self._eps, tap_of.pop(index, None))
        assert not tap_of, f"the decoder has no layer {min(tap_of)}"
        return normed, taps.flatten(1)

    def _whole_layer(
        self,
        stream: EmbeddedBlocks | ResidualStream,
        layer: FusedLayer,
        rows: CachePass,
        index: int,
        tap: torch.Tensor | None,
    ) -> ResidualStream | None:
        """The layer in one launch, where that is asked for and possible."""
        if not is_persistent() or isinstance(stream, EmbeddedBlocks):
            return None
        weights, cached = layer.weights(), rows.cached(index)
        if weights is None or cached is None:
            return None
        return persistent_layer(stream, weights, cached, self._eps, tap)

    def write(self, features: torch.Tensor, rows: CachePass) -> None:
        """Keys and values of context features [N, H], in every layer."""
        for index, layer in enumerate(self.layers):
            assert layer.keys_values is not None
            rows.write(index, self._by_head(layer.keys_values(features)), layer.head_norms)

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, H]."""
        return rms_norm(hidden, self._final_norm, self._eps)

    def _by_head(self, projected: torch.Tensor) -> torch.Tensor:
        """[N, heads * D] -> [N, heads, D]."""
        return projected.view(len(projected), -1, self._head_dim)


def _added(
    stream: ResidualStream,
    normed: torch.Tensor,
    around: BlockFilter | None,
    inner: Callable[[torch.Tensor], torch.Tensor],
    last: SkinnyLinear,
) -> ResidualStream:
    """The stream plus a sublayer of normed [N, H]: `inner`, then the product `last`."""
    if around is None:
        return last.onto(stream, inner(normed))
    delta = around.coefficients(normed)
    out = last(inner(around(normed, delta, 0)))
    return ResidualStream(stream.total, around(out, delta, 1))
