"""Our own lean forward for Llama-shaped models: fused weights, taps for free, many requests a pass.

Reads transformers' directories of Llama, SmolLM, Mistral, Qwen2 and Qwen3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from dspark.checkpoints.files import one_line, read_json
from dspark.checkpoints.quantized_targets import (
    QuantizedTensors,
    Weights,
    plain_infos,
    quantized_format,
)
from dspark.checkpoints.safetensors_dir import (
    Shapes,
    StoredTensors,
    check_tensors,
    tensor_infos,
)
from dspark.checkpoints.target_architectures import DENSE
from dspark.errors import CheckpointError
from dspark.kvcache.caches import CachePass, HeadShape, PagedCache, make_cache
from dspark.kvcache.row_pool import KVSlot
from dspark.models.decoder import Decoder
from dspark.models.placement import ON_DEVICE, Placement
from dspark.targets.base import Pass, TargetSpec
from dspark.targets.context import context_limit
from dspark.targets.dense_weights import LayerWeights, take_tables
from dspark.targets.stop_tokens import stop_tokens
from dspark_kernels import RotaryTable, SkinnyLinear
from dspark_kernels.backend import choose_backend
from dspark_kernels.skinny_linear import MAX_SKINNY_ROWS

INV_FREQ = "rotary_emb.inv_freq"  # computed, though some files store it
LARGEST_DEPTH = 4096
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # those whose frequencies are fixed


@dataclass(frozen=True, slots=True)
class DenseShape:
    """Sizes that the forward needs."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float

    def of_heads(self) -> HeadShape:
        sizes = (self.num_layers, self.num_heads, self.num_kv_heads, self.head_dim)
        return HeadShape(*sizes, scale=self.head_dim**-0.5)


def supports(config: PreTrainedConfig) -> bool:
    """Whether the dense forward computes this model exactly."""
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in DENSE
        and getattr(config, "hidden_act", "silu") == "silu"
        and rope.get("rope_type", "default") in ROPE_TYPES
        and not _slides(config)
    )


def _slides(config: PreTrainedConfig) -> bool:
    if config.model_type == "mistral":
        return getattr(config, "sliding_window", None) is not None
    return "sliding_attention" in (getattr(config, "layer_types", None) or ())


class DenseTarget:
    """A target whose requests share one pool; rollback is leaving rows uncommitted."""

    def __init__(
        self,
        config: PreTrainedConfig,
        tensors: Weights,
        *,
        tap_layers: tuple[int, ...] = (),
        stop_token_ids: frozenset[int] = frozenset(),
        pack: bool = True,
        placement: Placement = ON_DEVICE,
    ) -> None:
        """`tensors` under transformers' names; consumed, so that nothing is held twice."""
        self.tap_layers = tap_layers
        self._shape = _read_shape(config)
        try:
            self._take_weights(tensors, config.tie_word_embeddings, pack, placement)
        except KeyError as error:
            raise CheckpointError(f"the target lacks the tensor {error.args[0]}") from error
        self.device, self.dtype = self._embedding.device, self._embedding.dtype
        rotary = _rotary_embedding(config)
        table = RotaryTable(rotary.inv_freq.to(self.device), rotary.attention_scaling, self.dtype)
        self.cache = make_cache(self._shape.of_heads(), table, self.device, self.dtype)
        self.spec = TargetSpec(
            vocab_size=self._embedding.shape[0],
            hidden_size=self._embedding.shape[1],
            num_layers=self._shape.num_layers,
            context_limit=context_limit(config),
            stop_token_ids=stop_token_ids,
            rollback="crop",
            batches=True,
            max_rows=MAX_SKINNY_ROWS,
        )

    def _take_weights(self, tensors: Weights, tied: bool, pack: bool, placement: Placement) -> None:
        self._embedding, head = take_tables(tensors, tied=tied)
        final_norm = tensors.pop("model.norm.weight")
        shape, dtype = self._shape, self._embedding.dtype
        weights = LayerWeights(
            *(tensors, shape.eps, dtype),
            pack=pack and placement.prepacks,
            rereads=placement.rereads,
        )
        builds = [partial(weights.build, index) for index in range(shape.num_layers)]
        layers = placement.place(builds)
        if tensors and not placement.rereads:
            raise CheckpointError(f"the target has the surplus tensor {next(iter(tensors))}")
        self.decoder = Decoder(layers, final_norm, head_dim=shape.head_dim, eps=shape.eps)
        self._head = SkinnyLinear(head, pack=pack, is_shared=True)

    def embedding(self) -> torch.Tensor:
        return self._embedding

    def output_head(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return self._head

    def open(self) -> KVSlot:
        return self.cache.open()

    def close(self, slot: KVSlot) -> None:
        slot.close()

    def length(self, slot: KVSlot) -> int:
        return slot.length

    def prefill(self, slot: KVSlot, token_ids: torch.Tensor, total: int | None = None) -> Pass:
        rows = self.cache.at([slot], [token_ids.shape[0]], causal=True)
        hidden, taps = self.decoder.run(self._embedding[token_ids], rows, self.tap_layers)
        slot.length += token_ids.shape[0]
        return Pass(self._head(hidden[-1:]), taps)

    def verify(self, slots: Sequence[KVSlot], blocks: Sequence[torch.Tensor]) -> Pass:
        rows = self.cache.at(slots, [block.shape[0] for block in blocks], causal=True)
        return self.run(torch.cat(list(blocks)), rows)

    def paged_cache(self) -> PagedCache | None:
        return self.cache if isinstance(self.cache, PagedCache) else None

    def run(self, token_ids: torch.Tensor, rows: CachePass) -> Pass:
        """As DeviceTarget.run."""
        hidden, taps = self.decoder.run(self._embedding[token_ids], rows, self.tap_layers)
        return Pass(self._head(hidden), taps)

    def commit(self, slots: Sequence[KVSlot], num_kept: Sequence[int]) -> None:
        for slot, kept in zip(slots, num_kept, strict=True):
            slot.length += kept

    def truncate(self, slot: KVSlot, length: int, total: int | None = None) -> bool:
        slot.length = min(slot.length, length)
        return True

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.decoder.final_norm(hidden)


def _rotary_embedding(config: PreTrainedConfig) -> LlamaRotaryEmbedding:
    try:
        return LlamaRotaryEmbedding(cast(Any, config))
    except Exception as error:  # transformers meets a rope that makes no sense with any of them
        raise CheckpointError(f"the target's rope makes no sense ({one_line(error)})") from error


def _read_shape(config: Any) -> DenseShape:
    """Raises CheckpointError where the sizes are no sizes."""
    try:
        head_dim = getattr(config, "head_dim", None)
        shape = DenseShape(
            num_layers=int(config.num_hidden_layers),
            num_heads=int(config.num_attention_heads),
            num_kv_heads=int(config.num_key_value_heads),
            head_dim=int(head_dim or config.hidden_size // config.num_attention_heads),
            eps=float(config.rms_norm_eps),
        )
        sizes = (shape.num_layers, shape.num_heads, shape.num_kv_heads, shape.head_dim)
        is_sound = min(sizes) > 0 and 0.0 < shape.eps < 1.0
        if not is_sound or shape.num_heads % shape.num_kv_heads or shape.head_dim % 2:
            raise ValueError(f"{sizes}, eps {shape.eps}")
        return shape
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise CheckpointError(f"the target's sizes make no sense ({one_line(error)})") from error


def expected_tensors(config: Any) -> tuple[Shapes, set[str]]:
    """Name -> shape of all that the forward may use, and the names of what may be missing."""
    shape, hidden, inner = _read_shape(config), config.hidden_size, config.intermediate_size
    query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    linears = {
        **{"self_attn.q_proj": (query, hidden), "self_attn.k_proj": (key, hidden)},
        **{"self_attn.v_proj": (key, hidden), "self_attn.o_proj": (hidden, query)},
        **{"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden)},
        "mlp.down_proj": (hidden, inner),
    }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config.model_type == "qwen3":
        norms |= {"self_attn.q_norm": shape.head_dim, "self_attn.k_norm": shape.head_dim}
    layer: Shapes = {f"{name}.weight": both for name, both in linears.items()}
    layer |= {f"{name}.bias": both[:1] for name, both in linears.items()}
    layer |= {f"{name}.weight": (size,) for name, size in norms.items()}
    shapes: Shapes = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config.vocab_size, hidden),
        **{f"model.layers.{i}.{n}": s for i in range(shape.num_layers) for n, s in layer.items()},
    }
    optional = {name for name in shapes if name.endswith(".bias")}
    tables = {"model.embed_tokens.weight", "lm_head.weight"}  # either stands for both
    return shapes, optional | (tables if config.tie_word_embeddings else set())


def load_dense(
    directory: Path,
    config: PreTrainedConfig,
    *,
    tap_layers: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    pack: bool = True,
    placement: Placement = ON_DEVICE,
) -> DenseTarget:
    """Read a model directory. Raises CheckpointError naming a missing or surplus tensor."""
    infos = {n: info for n, info in tensor_infos(directory).items() if not n.endswith(INV_FREQ)}
    how = quantized_format(getattr(config, "quantization_config", None))
    plain = infos if how is None else plain_infos(infos, how)
    check_tensors(plain, *expected_tensors(config), str(directory))
    tensors: Weights  # read one after the other, as the layers are built
    if how is None:
        tensors = StoredTensors(directory, names=infos, device=device, dtype=dtype)
    else:
        stored = StoredTensors(directory, names=infos, device=device)
        keep_quantized = choose_backend(device).name == "triton"
        tensors = QuantizedTensors(stored, infos, how, keep_quantized=keep_quantized, dtype=dtype)
    return DenseTarget(
        config,
        tensors,
        tap_layers=tap_layers,
        stop_token_ids=stop_tokens(directory, config),
        pack=pack,
        placement=placement,
    )


def read_config(directory: Path) -> PreTrainedConfig:
    """The target's config; raises CheckpointError where there is none or it is unknown."""
    raw = read_json(directory / "config.json")
    depth = raw.get("num_hidden_layers")
    if isinstance(depth, int | float) and depth > LARGEST_DEPTH:  # transformers makes a list of it
        raise CheckpointError(f"{directory} says that its model has {depth} layers")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        return config
    except Exception as error:  # transformers meets what makes no sense with any of them
        raise CheckpointError(
            f"{directory} holds no model that transformers knows ({one_line(error)})",
            "A target is a folder with config.json and safetensors files.",
        ) from error
