"""The sizes of gpt-oss and Qwen3-MoE, from their config.json as published."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dspark.checkpoints.config_values import LARGEST_SIZE, positive
from dspark.errors import CheckpointError

GPT_OSS, QWEN3_MOE = "gpt_oss", "qwen3_moe"
BLOCK = (128, 128)  # of FP8, numbers that share a scale
MOST_LAYERS = 1000
ROPES = ("default", "linear", "llama3", "yarn")
WAY = "Fetch the files again, or use another release of the same model."


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    """`windows`: of each layer, how many keys a row sees, None for all; `shares_of_all`: experts'
    shares are parts of a softmax over all experts; `swiglu_limit`: None for plain SwiGLU."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    expert_size: int
    num_experts: int
    experts_per_token: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_parameters: Mapping[str, Any]
    windows: tuple[int | None, ...]
    shares_of_all: bool
    swiglu_limit: float | None
    has_bias: bool
    is_tied: bool
    eos_token_id: Any = None

    @property
    def is_oss(self) -> bool:
        return self.model_type == GPT_OSS

    def get_text_config(self) -> "MoeConfig":
        """As transformers' configs have it."""
        return self

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "MoeConfig":
        """Raises CheckpointError naming the key that is missing or wrong."""
        try:
            config = cls._parse(raw)
            config._check()
            return config
        except KeyError as error:
            raise CheckpointError(f"config.json has no {error.args[0]!r}", WAY) from error
        except (TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"config.json is malformed: {error}", WAY) from error

    @classmethod
    def _parse(cls, raw: Mapping[str, Any]) -> "MoeConfig":
        is_oss, depth = raw["model_type"] == GPT_OSS, int(raw["num_hidden_layers"])
        hidden, heads = int(raw["hidden_size"]), int(raw["num_attention_heads"])
        return cls(
            model_type=raw["model_type"],
            vocab_size=int(raw["vocab_size"]),
            hidden_size=hidden,
            num_layers=depth,
            num_heads=heads,
            num_kv_heads=int(raw["num_key_value_heads"]),
            head_dim=int(raw.get("head_dim") or hidden // heads),
            expert_size=int(raw["intermediate_size" if is_oss else "moe_intermediate_size"]),
            num_experts=int(raw.get("num_experts") or raw["num_local_experts"]),
            experts_per_token=int(raw["num_experts_per_tok"]),
            max_position_embeddings=int(raw["max_position_embeddings"]),
            rms_norm_eps=positive(raw, "rms_norm_eps"),
            rope_parameters=_rope(raw),
            windows=_windows(raw, depth) if is_oss else (None,) * depth,
            shares_of_all=not is_oss and not raw.get("norm_topk_prob", False),
            swiglu_limit=float(raw.get("swiglu_limit", 7.0)) if is_oss else None,
            has_bias=bool(raw.get("attention_bias", is_oss)),
            is_tied=bool(raw.get("tie_word_embeddings", False)),
            eos_token_id=raw.get("eos_token_id"),
        )

    def _check(self) -> None:
        for field in fields(self):
            size = getattr(self, field.name)
            if field.type is int and not 1 <= size < LARGEST_SIZE:
                raise ValueError(f"{field.name} {size} is out of range")
        if self.num_layers > MOST_LAYERS or self.experts_per_token > self.num_experts:
            raise ValueError("num_hidden_layers or num_experts_per_tok is out of range")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} heads do not share {self.num_kv_heads}")
        if any(window is not None and window < 1 for window in self.windows):
            raise ValueError("sliding_window is out of range")
        if not all(map(math.isfinite, (self.rms_norm_eps, self.swiglu_limit or 0.0))):
            raise ValueError("rms_norm_eps or swiglu_limit is out of range")


def is_moe_layout(raw: Mapping[str, Any]) -> bool:
    """Whether config.json is that of gpt-oss with experts in MXFP4, or of a Qwen3-MoE in plain
    numbers or in FP8 by blocks, all of whose layers have routed experts."""
    quantization = raw.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else None
    if kind not in ROPES or raw.get("hidden_act", "silu") != "silu":
        return False
    if raw.get("model_type") == GPT_OSS:
        return method == "mxfp4"
    return (
        raw.get("model_type") == QWEN3_MOE
        and (quantization is None or _has_blocks(quantization))
        and not raw.get("mlp_only_layers")
        and raw.get("decoder_sparse_step", 1) == 1
        and not raw.get("use_sliding_window")
    )


def row_values(config: MoeConfig) -> int:
    """Numbers of 4 bytes that a pass of our own forward holds of each of its rows: what goes
    through the layers, queries, keys and values, and every pair of a row and a routed expert."""
    hidden, inner, top = config.hidden_size, config.expert_size, config.experts_per_token
    attention = 3 * config.num_heads + 2 * config.num_kv_heads
    routes = config.num_experts + 2 * config.num_layers * top
    return 4 * hidden + attention * config.head_dim + routes + top * (hidden + 3 * inner)


def _has_blocks(quantization: Any) -> bool:
    return (
        isinstance(quantization, dict)
        and quantization.get("quant_method") == "fp8"
        and tuple(quantization.get("weight_block_size") or ()) == BLOCK
    )


def _rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    stated = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    rope = {"rope_theta": raw.get("rope_theta", stated.get("rope_theta"))} | stated
    rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    rope["rope_theta"] = positive(rope, "rope_theta")
    if rope["rope_type"] in ("llama3", "yarn"):
        rope.setdefault("original_max_position_embeddings", raw["max_position_embeddings"])
    return rope


def _windows(raw: Mapping[str, Any], depth: int) -> tuple[int | None, ...]:
    """By layer_types, or every other layer from the first on, as gpt-oss has them."""
    default = [("sliding_attention", "full_attention")[index % 2] for index in range(depth)]
    kinds, size = raw.get("layer_types") or default, int(raw["sliding_window"])
    if len(kinds) != depth or not {*kinds} <= {"sliding_attention", "full_attention"}:
        raise ValueError(f"layer_types {str(kinds)[:60]} do not fit {depth} layers")
    return tuple(size if kind == "sliding_attention" else None for kind in kinds)
