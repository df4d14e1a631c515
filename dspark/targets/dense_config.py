"""config.json of a Llama-shaped model without transformers, whose configs take long to import.

Read only where all that matters is stated plainly, and then as transformers reads it; what is
missing, odd or of another kind is left to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dspark.checkpoints.model_folder import Folder, ModelFolder
from dspark.checkpoints.target_architectures import DENSE
from dspark_kernels.rope_frequencies import FIXED_ROPES

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings"),
)
MOST_LAYERS = 4096
STOPS = {"llama": 2, "mistral": 2}  # eos where config.json states none
THETA = 10_000.0
ROPE_KEYS = {
    "default": set[str](),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseConfig:
    """Under the names of transformers."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]
    tie_word_embeddings: bool = False
    eos_token_id: Any = None
    quantization_config: Any = None
    sliding_window: None = field(default=None, init=False)

    def get_text_config(self) -> "DenseConfig":
        return self


def read_dense_config(folder: Folder) -> DenseConfig | None:
    """None for transformers to read. Raises CheckpointError where there is no JSON object."""
    raw = ModelFolder.of(folder).config
    sizes = {name: raw.get(name) for name in SIZES}
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    if not _is_plain(raw) or not all(_is_size(size) for size in sizes.values()):
        return None
    assert isinstance(heads, int) and isinstance(hidden, int)
    head_dim: Any = raw.get("head_dim")
    kv_heads: Any = raw.get("num_key_value_heads")
    if head_dim is None and raw["model_type"] != "qwen3":
        head_dim = hidden // heads
    if kv_heads is None and raw["model_type"] == "llama":
        kv_heads = heads
    rope = _rope(raw)
    if not (_is_size(head_dim) and _is_size(kv_heads)) or hidden % heads or rope is None:
        return None
    return DenseConfig(
        model_type=raw["model_type"],
        **sizes,  # type: ignore[arg-type]  # looked at above
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=raw["rms_norm_eps"],
        rope_parameters=rope,
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        eos_token_id=raw.get("eos_token_id", STOPS.get(raw["model_type"])),
        quantization_config=raw.get("quantization_config"),
    )


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _is_plain(raw: Mapping[str, Any]) -> bool:
    """One of our families, with a gate and an attention that the dense forward has."""
    kind, eps = raw.get("model_type"), raw.get("rms_norm_eps")
    layer_types = raw.get("layer_types") or []
    return (
        isinstance(kind, str)
        and kind in DENSE
        and type(eps) is float
        and 0.0 < eps < 1.0
        and raw.get("hidden_act", "silu") == "silu"
        and isinstance(raw.get("tie_word_embeddings", False), bool)
        and not (kind == "mistral" and raw.get("sliding_window", 0) is not None)
        and not (kind == "mistral" and "layer_types" in raw)  # another class
        and raw.get("use_sliding_window", False) is False
        and isinstance(layer_types, list)
        and all(each == "full_attention" for each in layer_types)
        and type(raw.get("num_hidden_layers")) is int
        and raw["num_hidden_layers"] <= MOST_LAYERS
        and isinstance(raw.get("eos_token_id"), int | list | None)
        and isinstance(raw.get("quantization_config"), dict | None)
    )


def _rope(raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """rope_parameters, or as older files state them: rope_scaling and rope_theta."""
    stated = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(stated, dict):
        return None
    rope = {"rope_theta": raw.get("rope_theta", THETA)} | stated
    kind = rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    is_partial = "partial_rotary_factor" in rope or "partial_rotary_factor" in raw
    if (
        not isinstance(kind, str)
        or kind not in FIXED_ROPES
        or is_partial
        or "original_max_position_embeddings" in raw
    ):
        return None
    if kind in ("llama3", "yarn"):
        rope.setdefault("original_max_position_embeddings", raw["max_position_embeddings"])
    numbers = [value for key, value in rope.items() if key not in ("rope_type", "type")]
    is_plain = all(isinstance(value, int | float) for value in numbers)
    return rope if is_plain and ROPE_KEYS[kind] <= rope.keys() else None
