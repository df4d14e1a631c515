"""The shape of a DSpark head, as DeepSpec writes it into config.json."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dspark.errors import CheckpointError

MarkovType = Literal["none", "vanilla", "gated", "rnn"]


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """Sizes of a head. `target_layer_ids` are the taps: 0-based layer outputs, -1 embeddings.

    `confidence_temperatures` is an addition of ours: one for each slot, None for all 1.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    block_size: int
    mask_token_id: int
    target_layer_ids: tuple[int, ...]
    num_target_layers: int
    markov_type: MarkovType = "vanilla"
    markov_rank: int = 0
    has_confidence: bool = False
    confidence_with_markov: bool = False
    attention_bias: bool = False
    max_positions: int = 8192
    confidence_temperatures: tuple[float, ...] | None = None
    final_logit_softcapping: float | None = None

    @property
    def temperatures(self) -> tuple[float, ...]:
        """What the confidence logit of each slot is divided by."""
        return self.confidence_temperatures or (1.0,) * self.block_size

    @property
    def tap_width(self) -> int:
        return len(self.target_layer_ids) * self.hidden_size

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "HeadConfig":
        """Raises CheckpointError naming the key that is missing or wrong."""
        try:
            return cls._parse(raw)
        except KeyError as error:
            raise CheckpointError(
                f"config.json of the draft has no {error.args[0]!r}",
                "Is this a DSpark head in DeepSpec's layout?",
            ) from error
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"config.json of the draft is malformed: {error}") from error

    @classmethod
    def _parse(cls, raw: Mapping[str, Any]) -> "HeadConfig":
        architecture = (raw.get("architectures") or ["?"])[0]
        if architecture != "Qwen3DSparkModel":
            raise CheckpointError(
                f"the draft's architecture is {architecture}, not Qwen3DSparkModel",
                "Only DeepSpec's standalone layout can be read so far.",
            )
        rank = int(raw["markov_rank"])
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        if rope.get("rope_type", "default") != "default":
            raise CheckpointError(f"rope type {rope['rope_type']!r} of the draft is not supported")
        config = cls(
            vocab_size=int(raw["vocab_size"]),
            hidden_size=int(raw["hidden_size"]),
            intermediate_size=int(raw["intermediate_size"]),
            num_layers=int(raw["num_hidden_layers"]),
            num_heads=int(raw["num_attention_heads"]),
            num_kv_heads=int(raw["num_key_value_heads"]),
            head_dim=int(raw["head_dim"]),
            rms_norm_eps=float(raw["rms_norm_eps"]),
            rope_theta=float(rope["rope_theta"] if "rope_theta" in rope else raw["rope_theta"]),
            block_size=int(raw["block_size"]),
            mask_token_id=int(raw["mask_token_id"]),
            target_layer_ids=tuple(int(i) for i in raw["target_layer_ids"]),
            num_target_layers=int(raw["num_target_layers"]),
            markov_type=raw["markov_head_type"] if rank > 0 else "none",
            markov_rank=rank,
            has_confidence=bool(raw["enable_confidence_head"]),
            confidence_with_markov=bool(raw.get("confidence_head_with_markov", False)),
            attention_bias=bool(raw.get("attention_bias", False)),
            max_positions=int(raw.get("max_position_embeddings", 8192)),
            confidence_temperatures=_numbers_or_none(raw, "confidence_temperatures"),
            final_logit_softcapping=_positive_or_none(raw, "final_logit_softcapping"),
        )
        config._check()
        return config

    def _check(self) -> None:
        if self.markov_type not in ("none", "vanilla", "gated", "rnn"):
            raise ValueError(f"markov_head_type {self.markov_type!r} is unknown")
        if self.has_confidence and self.confidence_with_markov and self.markov_rank == 0:
            raise ValueError("confidence_head_with_markov needs markov_rank > 0")
        if not self.target_layer_ids or min(self.target_layer_ids) < -1:
            raise ValueError(
                f"target_layer_ids {list(self.target_layer_ids)} is not a list of layers"
            )
        if max(self.target_layer_ids) >= self.num_target_layers - 1:
            raise ValueError(
                f"target_layer_ids {list(self.target_layer_ids)} reaches the last of "
                f"{self.num_target_layers} target layers, which is never a tap"
            )
        if self.block_size < 1 or not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError("block_size or mask_token_id is out of range")
        temperatures = self.temperatures
        if len(temperatures) != self.block_size:
            raise ValueError(
                f"confidence_temperatures has {len(temperatures)} numbers "
                f"for a block of {self.block_size}"
            )
        if not all(math.isfinite(t) and t > 0.0 for t in temperatures):
            raise ValueError("confidence_temperatures are not all positive numbers")

    def _calibration_json(self) -> dict[str, Any]:
        temperatures = self.confidence_temperatures
        return {} if temperatures is None else {"confidence_temperatures": list(temperatures)}

    def to_json(self) -> dict[str, Any]:
        """The keys that DeepSpec's own loader reads, and our own where they say something."""
        return {
            "architectures": ["Qwen3DSparkModel"],
            "model_type": "qwen3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "max_position_embeddings": self.max_positions,
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "tie_word_embeddings": False,
            "layer_types": ["full_attention"] * self.num_layers,
            "sliding_window": None,
            "use_sliding_window": False,
            "pad_token_id": None,
            "block_size": self.block_size,
            "mask_token_id": self.mask_token_id,
            "target_layer_ids": list(self.target_layer_ids),
            "num_target_layers": self.num_target_layers,
            "num_anchors": 512,  # DeepSpec's loader insists on it; decoding has no use for it
            "markov_rank": self.markov_rank,
            "markov_head_type": "vanilla" if self.markov_type == "none" else self.markov_type,
            "enable_confidence_head": self.has_confidence,
            "confidence_head_with_markov": self.confidence_with_markov,
            **self._calibration_json(),
        } | self._softcap_json()

    def _softcap_json(self) -> dict[str, Any]:
        cap = self.final_logit_softcapping
        return {} if cap is None else {"final_logit_softcapping": cap}


def _positive_or_none(raw: Mapping[str, Any], key: str) -> float | None:
    value = raw.get(key)
    if value is not None and not float(value) > 0.0:
        raise ValueError(f"{key} {value!r} is not positive")
    return None if value is None else float(value)


def _numbers_or_none(raw: Mapping[str, Any], key: str) -> tuple[float, ...] | None:
    value = raw.get(key)
    if value is not None and not (isinstance(value, list) and value):
        raise ValueError(f"{key} {value!r} is not a list of numbers")
    return None if value is None else tuple(float(number) for number in value)


def expected_tensors(config: HeadConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a head in DeepSpec's layout, embedding and head included."""
    hidden, vocab, rank = config.hidden_size, config.vocab_size, config.markov_rank
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "norm.weight": (hidden,),
        "fc.weight": (hidden, config.tap_width),
        "hidden_norm.weight": (hidden,),
    }
    for index in range(config.num_layers):
        for name, shape in _layer_tensors(config).items():
            shapes[f"layers.{index}.{name}"] = shape
    if config.markov_type != "none":
        shapes |= {
            "markov_head.markov_w1.weight": (vocab, rank),
            "markov_head.markov_w2.weight": (vocab, rank),
        }
    if config.markov_type == "gated":
        shapes |= {
            "markov_head.gate_proj.weight": (rank, hidden + rank),
            "markov_head.gate_proj.bias": (rank,),
        }
    if config.markov_type == "rnn":
        shapes |= {
            "markov_head.joint_proj.weight": (3 * rank, 2 * rank + hidden),
            "markov_head.joint_proj.bias": (3 * rank,),
        }
    if config.has_confidence:
        width = hidden + (rank if config.confidence_with_markov else 0)
        shapes |= {"confidence_head.proj.weight": (1, width), "confidence_head.proj.bias": (1,)}
    return shapes


def _layer_tensors(config: HeadConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    query, key = config.num_heads * head_dim, config.num_kv_heads * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (query, hidden),
        "self_attn.k_proj.weight": (key, hidden),
        "self_attn.v_proj.weight": (key, hidden),
        "self_attn.o_proj.weight": (hidden, query),
        "self_attn.q_norm.weight": (head_dim,),
        "self_attn.k_norm.weight": (head_dim,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config.attention_bias:
        shapes |= {
            "self_attn.q_proj.bias": (query,),
            "self_attn.k_proj.bias": (key,),
            "self_attn.v_proj.bias": (key,),
            "self_attn.o_proj.bias": (hidden,),
        }
    return shapes
