"""The shape of an Eagle3 head, as DeepSpec writes it into config.json. MTP-1 is its least case."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dspark.checkpoints.head_config import HeadConfig
from dspark.errors import CheckpointError

EAGLE3_ARCHITECTURE = "Qwen3Eagle3Model"


@dataclass(frozen=True, slots=True)
class Eagle3Config:
    """Sizes of a head of one layer. `ttt_length` tokens are drafted, one pass for each."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    ttt_length: int
    target_layer_ids: tuple[int, ...]
    num_target_layers: int
    step_loss_decay: float = 0.8
    attention_bias: bool = False
    max_positions: int = 8192
    final_logit_softcapping: float | None = None

    @property
    def num_layers(self) -> int:
        return 1

    @property
    def block_size(self) -> int:
        return self.ttt_length

    @property
    def tap_width(self) -> int:
        return len(self.target_layer_ids) * self.hidden_size

    @property
    def attention_width(self) -> int:
        """What queries, keys and values are made of: a token's embedding beside a hidden state."""
        return 2 * self.hidden_size

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Eagle3Config":
        """Raises CheckpointError naming the key that is missing or wrong."""
        try:
            return cls._parse(raw)
        except KeyError as error:
            raise CheckpointError(
                f"config.json of the draft has no {error.args[0]!r}",
                "Is this an Eagle3 head in DeepSpec's layout?",
            ) from error
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"config.json of the draft is malformed: {error}") from error

    @classmethod
    def _parse(cls, raw: Mapping[str, Any]) -> "Eagle3Config":
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        if rope.get("rope_type", "default") != "default":
            raise CheckpointError(f"rope type {rope['rope_type']!r} of the draft is not supported")
        if int(raw["num_hidden_layers"]) != 1:
            raise CheckpointError(
                f"the Eagle3 draft has {raw['num_hidden_layers']} layers",
                "Only Eagle3 heads of one layer can be read.",
            )
        cap = raw.get("final_logit_softcapping")
        config = cls(
            vocab_size=int(raw["vocab_size"]),
            hidden_size=int(raw["hidden_size"]),
            intermediate_size=int(raw["intermediate_size"]),
            num_heads=int(raw["num_attention_heads"]),
            num_kv_heads=int(raw["num_key_value_heads"]),
            head_dim=int(raw["head_dim"]),
            rms_norm_eps=float(raw["rms_norm_eps"]),
            rope_theta=float(rope["rope_theta"] if "rope_theta" in rope else raw["rope_theta"]),
            ttt_length=int(raw["ttt_length"]),
            target_layer_ids=tuple(int(i) for i in raw["target_layer_ids"]),
            num_target_layers=int(raw["num_target_layers"]),
            step_loss_decay=float(raw["step_loss_decay"]),
            attention_bias=bool(raw.get("attention_bias", False)),
            max_positions=int(raw.get("max_position_embeddings", 8192)),
            final_logit_softcapping=None if cap is None else float(cap),
        )
        config._check()
        return config

    def _check(self) -> None:
        taps = list(self.target_layer_ids)
        if not taps or min(taps) < -1:
            raise ValueError(f"target_layer_ids {taps} is not a list of layers")
        if max(taps) >= self.num_target_layers - 1:
            raise ValueError(
                f"target_layer_ids {taps} reaches the last of {self.num_target_layers} target "
                "layers, which is never a tap"
            )
        if self.ttt_length < 1:
            raise ValueError(f"ttt_length {self.ttt_length} is out of range")
        cap = self.final_logit_softcapping
        if cap is not None and not cap > 0.0:
            raise ValueError(f"final_logit_softcapping {cap} is not positive")

    def to_json(self) -> dict[str, Any]:
        """The keys that DeepSpec's own loader reads."""
        cap = self.final_logit_softcapping
        return {
            "architectures": [EAGLE3_ARCHITECTURE],
            "model_type": "qwen3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": 1,
            "draft_num_hidden_layers": 1,
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
            "layer_types": ["full_attention"],
            "sliding_window": None,
            "use_sliding_window": False,
            "pad_token_id": None,
            "target_layer_ids": list(self.target_layer_ids),
            "num_target_layers": self.num_target_layers,
            "ttt_length": self.ttt_length,
            "step_loss_decay": self.step_loss_decay,
        } | ({} if cap is None else {"final_logit_softcapping": cap})


DraftConfig = HeadConfig | Eagle3Config


def expected_eagle3_tensors(config: Eagle3Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in DeepSpec's layout, embedding and output head included."""
    hidden, inner, width = config.hidden_size, config.intermediate_size, config.attention_width
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "hidden_norm.weight": (hidden,),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (query, width),
        "self_attn.k_proj.weight": (key, width),
        "self_attn.v_proj.weight": (key, width),
        "self_attn.o_proj.weight": (hidden, query),
        "self_attn.q_norm.weight": (config.head_dim,),
        "self_attn.k_norm.weight": (config.head_dim,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config.attention_bias:
        sizes = {"q_proj": query, "k_proj": key, "v_proj": key, "o_proj": hidden}
        layer |= {f"self_attn.{name}.bias": (size,) for name, size in sizes.items()}
    return {
        "embed_tokens.weight": (config.vocab_size, hidden),
        "lm_head.weight": (config.vocab_size, hidden),
        "norm.weight": (hidden,),
        "fc.weight": (hidden, config.tap_width),
        **{f"layers.0.{name}": shape for name, shape in layer.items()},
    }
