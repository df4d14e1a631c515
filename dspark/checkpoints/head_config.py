"""The part shared by the configs of all heads: sizes, RoPE, taps, tensors of a decoder layer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, Self

from dspark.config import Algorithm, GraftConfig
from dspark.errors import CheckpointError, PairMismatchError

Family = Literal["qwen3", "gemma4"]
MarkovType = Literal["none", "vanilla", "gated", "rnn"]
ROPE_NOISE = ("default", "mrope")  # copied from the target; the head rotates every dimension
YARN_KEYS = {
    *("type", "rope_type", "rope_theta", "partial_rotary_factor", "factor"),
    *("original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"),
}
LARGEST_SIZE = 2**31  # of any dimension; a larger one means a damaged file


@dataclass(frozen=True, slots=True, kw_only=True)
class Yarn:
    """RoPE scaled for a longer context by YaRN (Peng et al. 2023), as transformers computes it."""

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    @classmethod
    def from_json(cls, rope: Mapping[str, Any], max_positions: int) -> "Yarn":
        surplus = set(rope) - YARN_KEYS
        if surplus or "factor" not in rope:
            wrong = f"the unknown key {min(surplus)}" if surplus else "no 'factor'"
            raise CheckpointError(f"the head's YaRN settings have {wrong}")
        return cls(
            factor=positive(rope, "factor"),
            original_max_positions=int(
                rope.get("original_max_position_embeddings") or max_positions
            ),
            beta_fast=float(rope.get("beta_fast") or 32.0),
            beta_slow=float(rope.get("beta_slow") or 1.0),
            attention_factor=positive_or_none(rope, "attention_factor"),
        )

    def to_json(self) -> dict[str, Any]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        original = named.pop("original_max_positions")
        stated = {key: value for key, value in named.items() if value is not None}
        return {"rope_type": "yarn", "original_max_position_embeddings": original} | stated


class AnyHeadConfig(Protocol):
    """What can be asked of every head, whatever its kind and its files.

    `target_layer_ids` are the taps: 0-based layer outputs, -1 embeddings.
    """

    @property
    def algorithm(self) -> Algorithm: ...
    @property
    def block_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def target_layer_ids(self) -> tuple[int, ...]: ...
    @property
    def markov_type(self) -> MarkovType: ...
    @property
    def markov_rank(self) -> int: ...
    @property
    def has_confidence(self) -> bool: ...

    def check_target(self, *, vocab_size: int, hidden_size: int, num_layers: int) -> None:
        """Raises PairMismatchError where the head was not made for a target of these sizes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """A head in files of its own: what all have in common, and what a kind states of itself.

    `architectures` are its names in DeepSpec's layout, by the style of its layers; `algorithms`
    those that train it; `has_mask`: a token stands for drafts that are not known yet.
    `num_target_layers` is None if the file does not state the target's depth.
    """

    architectures: ClassVar[Mapping[Family, str]]
    algorithms: ClassVar[tuple[Algorithm, ...]]
    has_mask: ClassVar[bool] = False

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    target_layer_ids: tuple[int, ...]
    num_target_layers: int | None
    attention_bias: bool = False
    max_positions: int = 8192
    final_logit_softcapping: float | None = None
    yarn: Yarn | None = None
    family: Family = "qwen3"
    rotated_fraction: float = 1.0  # of a head's dimensions; the others are not rotated

    @property
    def algorithm(self) -> Algorithm:
        raise NotImplementedError

    @property
    def num_layers(self) -> int:
        raise NotImplementedError

    @property
    def block_size(self) -> int:
        """Tokens drafted a round."""
        raise NotImplementedError

    # What only some kinds have; theirs are fields.

    @property
    def mask_token_id(self) -> int | None:
        return None

    @property
    def markov_type(self) -> MarkovType:
        return "none"

    @property
    def markov_rank(self) -> int:
        return 0

    @property
    def has_confidence(self) -> bool:
        return False

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Divisor of the confidence logit at each position."""
        return (1.0,) * self.block_size

    @property
    def sample_from_anchor(self) -> bool:
        return True

    @property
    def draft_vocab_size(self) -> int | None:
        """Rows of the output head where it knows fewer tokens than the target."""
        return None

    @property
    def embedding_scale(self) -> float:
        """Multiplier of the stored embedding."""
        return math.sqrt(self.hidden_size) if self.family == "gemma4" else 1.0

    @property
    def attention_scale(self) -> float:
        return 1.0 if self.family == "gemma4" else self.head_dim**-0.5

    @property
    def tap_width(self) -> int:
        return len(self.target_layer_ids) * self.hidden_size

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Raises CheckpointError naming the key that is missing or wrong."""
        try:
            config = cls._parse(raw)
            config._check()
            return config
        except KeyError as error:
            raise CheckpointError(
                f"the head's config.json has no {error.args[0]!r}",
                "Is this a DSpark, DFlash or Eagle3 head?",
            ) from error
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"the head's config.json is malformed: {error}") from error

    @classmethod
    def _parse(cls, raw: Mapping[str, Any]) -> Self:
        raise NotImplementedError

    @classmethod
    def for_training(
        cls, sizes: Mapping[str, Any], settings: GraftConfig, mask_token_id: int
    ) -> Self:
        """`sizes` are the fields that the target decides; raises InputError for settings that no
        head of this kind has."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """The keys that DeepSpec's loader reads, and our own if they differ from the default."""
        raise NotImplementedError

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor in DeepSpec's layout, the target's two tables included."""
        raise NotImplementedError

    def check_target(self, *, vocab_size: int, hidden_size: int, num_layers: int) -> None:
        """Raises PairMismatchError where the head was not made for a target of these sizes."""
        for what, draft, target in (
            ("hidden size", self.hidden_size, hidden_size),
            ("vocabulary", self.vocab_size, vocab_size),
            ("number of target layers", self.num_target_layers, num_layers),
        ):
            if draft not in (target, None):
                raise PairMismatchError(
                    f"the draft does not belong to this target: its {what} is {draft}, "
                    f"the target's {target}",
                    "Use the head that was trained for this model, or --draft none.",
                )
        if max(self.target_layer_ids) >= num_layers - 1:
            raise PairMismatchError(
                f"the draft taps layer {max(self.target_layer_ids)}, but the target's last usable "
                f"layer is {num_layers - 2}",
                "Use the head that was trained for this model, or --draft none.",
            )

    def _check(self) -> None:
        sizes = {
            field.name: getattr(self, field.name) for field in fields(self) if field.type is int
        }
        for name, size in sizes.items():
            if not 0 <= size < LARGEST_SIZE or (size == 0 and name != "markov_rank"):
                raise ValueError(f"{name} {size} is out of range")
        for name in ("rms_norm_eps", "rope_theta"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0.0):
                raise ValueError(f"{name} {getattr(self, name)} is not positive")
        if self.num_heads % self.num_kv_heads or self.head_dim % 2:
            raise ValueError("num_key_value_heads or head_dim does not divide the heads")
        taps = list(self.target_layer_ids)
        if not taps or min(taps) < -1:
            raise ValueError(f"target_layer_ids {taps} is not a list of layers")
        if self.num_target_layers is not None and max(taps) >= self.num_target_layers - 1:
            raise ValueError(
                f"target_layer_ids {taps} reaches the last of {self.num_target_layers} target "
                "layers, which is never a tap"
            )

    def _common_json(self) -> dict[str, Any]:
        cap = self.final_logit_softcapping
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": self.rms_norm_eps,
            "max_position_embeddings": self.max_positions,
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "tie_word_embeddings": False,
            "sliding_window": None,
            "pad_token_id": None,
            "target_layer_ids": list(self.target_layer_ids),
            "num_target_layers": self.num_target_layers,
            **(self._gemma4_json() if self.family == "gemma4" else self._qwen3_json()),
        } | ({} if cap is None else {"final_logit_softcapping": cap})

    def _qwen3_json(self) -> dict[str, Any]:
        rope = self.yarn.to_json() if self.yarn else {"rope_type": "default"}
        return {
            "model_type": "qwen3",
            "hidden_act": "silu",
            "rope_parameters": rope | {"rope_theta": self.rope_theta},
            "use_sliding_window": False,
        }

    def _gemma4_json(self) -> dict[str, Any]:
        """The keys of Gemma 4's text config, without those of its sliding layers."""
        rope = {
            "rope_type": "proportional",
            "rope_theta": self.rope_theta,
            "partial_rotary_factor": self.rotated_fraction,
        }
        return {
            "model_type": "gemma4_text",
            "hidden_activation": "gelu_pytorch_tanh",
            "num_global_key_value_heads": self.num_kv_heads,
            "global_head_dim": self.head_dim,
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


def architecture_of(raw: Mapping[str, Any]) -> str:
    return str((raw.get("architectures") or ["?"])[0])


def common_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of HeadConfig from the keys of a config.json, of Qwen3's or Gemma 4's layers."""
    if architecture_of(raw).startswith("Gemma4"):
        flat, family_fields = _gemma4(raw)
        return _qwen3_keys(flat) | family_fields
    return _qwen3_keys(raw)


def _gemma4(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A Gemma 4 config's keys under Qwen3's names, and the fields that only it sets."""
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
    return flat, {"family": "gemma4", "rotated_fraction": positive(rope, "partial_rotary_factor")}


def _qwen3_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
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


def positive(raw: Mapping[str, Any], key: str) -> float:
    value = float(raw[key])
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError(f"{key} {raw[key]!r} is not positive")
    return value


def positive_or_none(raw: Mapping[str, Any], key: str) -> float | None:
    return None if raw.get(key) is None else positive(raw, key)


def layer_tensors(config: HeadConfig, input_width: int) -> dict[str, tuple[int, ...]]:
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
    if config.family == "gemma4":
        del shapes["self_attn.v_proj.weight"]
        shapes |= {f"{which}_feedforward_layernorm.weight": (hidden,) for which in ("pre", "post")}
        shapes["layer_scalar"] = (1,)
    if config.attention_bias:
        sizes = {"q_proj": query, "k_proj": key, "v_proj": key, "o_proj": hidden}
        shapes |= {f"self_attn.{name}.bias": (size,) for name, size in sizes.items()}
    return shapes
