"""RoPE settings of a GGUF, as llama.cpp applies them, in transformers' terms."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from dspark.checkpoints.files import shown
from dspark.errors import CheckpointError
from dspark_kernels.rope_frequencies import rope_frequencies

LLAMA3_ROPE = {  # all released ones'
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def rope_parameters(fields: Mapping[str, Any]) -> dict[str, Any]:
    """From the header. Raises CheckpointError for an unknown scaling."""
    architecture = fields["general.architecture"]

    def of(key: str, default: Any) -> Any:
        return fields.get(f"{architecture}.rope.{key}", default)

    rope = {"rope_theta": of("freq_base", 10000.0), "rope_type": "default"}
    # a factor without a type is linear; its key of 2023 has that in its name
    kind, attention = of("scaling.type", "linear"), of("scaling.attn_factor", 1.0)
    factor = of("scaling.factor", of("scale_linear", 0.0)) or 1.0
    if kind not in ("none", "linear", "yarn") or not 0 < factor < math.inf:
        raise CheckpointError(
            f"GGUF with RoPE scaling {shown(str(kind))} {factor} cannot be converted"
        )
    if attention != 1.0 and (kind != "yarn" or factor == 1.0):
        raise CheckpointError(f"GGUF with rope.scaling.attn_factor = {attention} without YaRN")
    if kind == "none" or factor == 1.0:
        return rope
    rope |= {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        length = fields[f"{architecture}.context_length"]
        rope["original_max_position_embeddings"] = of("scaling.original_context_length", length)
        if attention != 1.0:
            rope["attention_factor"] = attention * (1.0 + 0.1 * math.log(max(factor, 1.0)))
    return rope


def with_divisors(config: dict[str, Any], divisors: torch.Tensor) -> dict[str, Any]:
    """The scaling that yields the file's divisors of each frequency; raises CheckpointError if no
    released one does."""
    rope: dict[str, Any] = config["rope_parameters"]
    if torch.all(divisors == 1):
        return rope
    scaled = {**LLAMA3_ROPE, "rope_theta": rope["rope_theta"], "factor": float(divisors.max())}
    frequencies = [rope_frequencies(each, config["head_dim"])[0] for each in (rope, scaled)]
    made = frequencies[0] / frequencies[1]
    is_known = made.shape == divisors.shape and torch.allclose(made, divisors, rtol=1e-3)
    if not is_known or rope["rope_type"] != "default" or config["model_type"] != "llama":
        raise CheckpointError("GGUF with an unknown RoPE scaling")
    return scaled
