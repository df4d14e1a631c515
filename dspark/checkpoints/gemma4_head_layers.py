"""Heads whose layers are Gemma 4's: their keys in config.json, and the tensors of a layer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dspark.checkpoints import qwen3_head_layers
from dspark.checkpoints.config_values import positive
from dspark.errors import CheckpointError

if TYPE_CHECKING:
    from dspark.checkpoints.head_config import HeadConfig


def read_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of HeadConfig: the keys under Qwen3's names, and what only Gemma 4 sets. Raises
    CheckpointError for what is not supported."""
    rope = raw["rope_parameters"]["full_attention"]
    is_established = (
        raw["attention_k_eq_v"] is True
        and raw["hidden_activation"] == "gelu_pytorch_tanh"
        and rope["rope_type"] == "proportional"
        and not raw.get("enable_moe_block")
        and not raw.get("hidden_size_per_layer_input")
        and not raw.get("attention_bias")
    )
    if not is_established:
        raise CheckpointError(
            "the Gemma4 head differs from the released one in its layers", "vLLM may run it."
        )
    flat = {
        **raw,
        "num_key_value_heads": raw["num_global_key_value_heads"],
        "head_dim": raw["global_head_dim"],
        "rope_parameters": {"rope_type": "default", "rope_theta": rope["rope_theta"]},
    }
    own = {"family": "gemma4", "rotated_fraction": positive(rope, "partial_rotary_factor")}
    return qwen3_head_layers.read_keys(flat) | own


def own_keys(config: "HeadConfig") -> dict[str, Any]:
    """Of a config.json, the keys of Gemma 4's text config, without those of its sliding layers."""
    rope = {
        "rope_type": "proportional",
        "rope_theta": config.rope_theta,
        "partial_rotary_factor": config.rotated_fraction,
    }
    return {
        "model_type": "gemma4_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "num_global_key_value_heads": config.num_kv_heads,
        "global_head_dim": config.head_dim,
        "attention_k_eq_v": True,
        "sliding_window": 1024,
        "enable_moe_block": False,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        "bos_token_id": None,
        "eos_token_id": None,
    }


def layer_tensors(config: "HeadConfig", input_width: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a decoder layer: Qwen3's without values, which are its keys, and with two
    more norms and a scale."""
    shapes = qwen3_head_layers.layer_tensors(config, input_width)
    del shapes["self_attn.v_proj.weight"]
    names = [f"{which}_feedforward_layernorm.weight" for which in ("pre", "post")]
    return shapes | dict.fromkeys(names, (config.hidden_size,)) | {"layer_scalar": (1,)}
