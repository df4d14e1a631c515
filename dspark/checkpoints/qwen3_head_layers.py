"""Heads whose layers are Qwen3's: their keys in config.json, and the tensors of a layer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dspark.checkpoints.config_values import positive_or_none
from dspark.checkpoints.yarn import Yarn
from dspark.errors import CheckpointError

if TYPE_CHECKING:
    from dspark.checkpoints.head_config import HeadConfig

ROPE_NOISE = ("default", "mrope")  # copied from the target; the head rotates every dimension


def read_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of HeadConfig. Raises CheckpointError for what is not supported."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    max_positions = int(raw.get("max_position_embeddings", 8192))
    depth = raw["num_target_layers"]
    if kind not in (*ROPE_NOISE, "yarn"):
        raise CheckpointError(f"the head's RoPE type {kind!r} is not supported")
    refuse_sliding(raw)
    if raw.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"the head's activation {raw['hidden_act']!r} is not supported")
    return {
        "vocab_size": int(raw["vocab_size"]),
        "hidden_size": int(raw["hidden_size"]),
        "intermediate_size": int(raw["intermediate_size"]),
        "num_heads": int(raw["num_attention_heads"]),
        "num_kv_heads": int(raw["num_key_value_heads"]),
        "head_dim": int(raw["head_dim"]),
        "rms_norm_eps": float(raw["rms_norm_eps"]),
        "rope_theta": float(rope["rope_theta"] if "rope_theta" in rope else raw["rope_theta"]),
        "target_layer_ids": tuple(int(i) for i in raw["target_layer_ids"]),
        "num_target_layers": None if depth is None else int(depth),
        "attention_bias": bool(raw.get("attention_bias", False)),
        "max_positions": max_positions,
        "final_logit_softcapping": positive_or_none(raw, "final_logit_softcapping"),
        "yarn": Yarn.from_json(rope, max_positions) if kind == "yarn" else None,
    }


def refuse_sliding(raw: Mapping[str, Any]) -> None:
    if "sliding_attention" in (raw.get("layer_types") or ()):
        raise CheckpointError(
            "the head uses a sliding window over its context, which is not supported",
            "vLLM and SGLang run such heads.",
        )


def own_keys(config: "HeadConfig") -> dict[str, Any]:
    """Of a config.json, the keys that other families do not have, or with other values."""
    rope = config.yarn.to_json() if config.yarn else {"rope_type": "default"}
    return {
        "model_type": "qwen3",
        "hidden_act": "silu",
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
        "use_sliding_window": False,
    }


def layer_tensors(config: "HeadConfig", input_width: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a decoder layer whose attention projects rows of `input_width`."""
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    query, key = config.num_heads * head_dim, config.num_kv_heads * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (query, input_width),
        "self_attn.k_proj.weight": (key, input_width),
        "self_attn.v_proj.weight": (key, input_width),
        "self_attn.o_proj.weight": (hidden, query),
        "self_attn.q_norm.weight": (head_dim,),
        "self_attn.k_norm.weight": (head_dim,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config.attention_bias:
        sizes = {"q_proj": query, "k_proj": key, "v_proj": key, "o_proj": hidden}
        shapes |= {f"self_attn.{name}.bias": (size,) for name, size in sizes.items()}
    return shapes
