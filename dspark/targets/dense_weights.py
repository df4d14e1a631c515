"""Weights under transformers' names, fused into the layers of a decoder."""

import torch

from dspark.checkpoints.quantized_targets import Weights, fused
from dspark.models.decoder import FusedLayer
from dspark_kernels import HeadNorms, SkinnyLinear
from dspark_kernels.host_memory import give_back_freed


class LayerWeights:
    """Builds layers from `tensors`, which are consumed unless `rereads`: then a layer may be built
    again."""

    def __init__(
        self, tensors: Weights, eps: float, dtype: torch.dtype, *, prepack: bool, rereads: bool
    ) -> None:
        self._tensors, self._eps, self._dtype = tensors, eps, dtype
        self._prepack, self._rereads = prepack, rereads

    def build(self, index: int) -> FusedLayer:
        """Raises KeyError with the name of a missing tensor."""
        layer = f"model.layers.{index}."
        built = FusedLayer(
            input_norm=self._take(layer + "input_layernorm.weight"),
            qkv=self._fuse(layer + "self_attn.", "q_proj", "k_proj", "v_proj"),
            head_norms=self._head_norms(layer + "self_attn."),
            output=self._fuse(layer + "self_attn.", "o_proj"),
            mlp_norm=self._take(layer + "post_attention_layernorm.weight"),
            gate_up=self._fuse(layer + "mlp.", "gate_proj", "up_proj"),
            down=self._fuse(layer + "mlp.", "down_proj"),
        )
        give_back_freed()
        return built

    def _fuse(self, prefix: str, *names: str) -> SkinnyLinear:
        weight = fused([self._take(f"{prefix}{name}.weight") for name in names], self._dtype)
        biases = [self._find(f"{prefix}{name}.bias") for name in names]
        present = [bias for bias in biases if bias is not None]
        return SkinnyLinear(weight, torch.cat(present) if present else None, prepack=self._prepack)

    def _head_norms(self, prefix: str) -> HeadNorms | None:
        query = self._find(f"{prefix}q_norm.weight")
        key = self._find(f"{prefix}k_norm.weight")
        return None if query is None or key is None else HeadNorms(query, key, self._eps)

    def _take(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._tensors[name] if self._rereads else self._tensors.pop(name)
        return tensor

    def _find(self, name: str) -> torch.Tensor | None:
        return self._take(name) if name in self._tensors else None


def take_tables(tensors: Weights, *, tied: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Embedding and output head [V, H] each; tied, one tensor unless a file holds two that differ.

    As transformers has it, whatever else a config that was merged or tuned says.
    """
    names = ("model.embed_tokens.weight", "lm_head.weight")
    tables = [tensors.pop(name) for name in names if name in tensors or not tied]
    if not tables:
        raise KeyError(names[0])
    first, last = tables[0], tables[-1]
    return first, first if tied and torch.equal(first, last) else last
