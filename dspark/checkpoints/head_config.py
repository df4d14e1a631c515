"""The part shared by the configs of all heads: sizes, RoPE, taps. What differs by the style of the
layers is in qwen3_head_layers.py and gemma4_head_layers.py."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, Self

from dspark.checkpoints import gemma4_head_layers, qwen3_head_layers
from dspark.checkpoints.config_values import LARGEST_SIZE, architecture_of
from dspark.checkpoints.yarn import Yarn
from dspark.config import Algorithm, GraftConfig
from dspark.errors import CheckpointError, PairMismatchError

Family = Literal["qwen3", "gemma4"]
MarkovType = Literal["none", "vanilla", "gated", "rnn"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What makes confidences of the head's logits z: c_k = sigmoid((z_k + shift_k) / T_k)."""

    temperatures: tuple[float, ...]
    shifts: tuple[float, ...]

    @classmethod
    def none(cls, block_size: int) -> Self:
        return cls((1.0,) * block_size, (0.0,) * block_size)

    def to_json(self) -> dict[str, Any]:
        return {"shifts": list(self.shifts), "temperatures": list(self.temperatures)}


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
    def sampled_calibration(self) -> Calibration:
        """Of requests that draw their tokens."""
        return Calibration.none(self.block_size)

    @property
    def greedy_calibration(self) -> Calibration:
        """Of requests at temperature 0."""
        return self.sampled_calibration

    @property
    def sample_from_anchor(self) -> bool:
        return True

    @property
    def table_rank(self) -> int:
        """Of the trained tables with a row per token; 0 without any."""
        return self.markov_rank

    @property
    def untrained(self) -> str | None:
        """What the head has and no training keeps."""
        return None

    @property
    def sliding_window(self) -> int | None:
        """A row sees keys less than this many positions away; None for all."""
        return None

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
            **_layers(self.family).own_keys(self),
        } | ({} if cap is None else {"final_logit_softcapping": cap})


def common_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of HeadConfig from the keys of a config.json."""
    family: Family = "gemma4" if architecture_of(raw).startswith("Gemma4") else "qwen3"
    return _layers(family).read_keys(raw)


def layer_tensors(config: HeadConfig, input_width: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a decoder layer whose attention projects rows of `input_width`."""
    return _layers(config.family).layer_tensors(config, input_width)


class _Layers(Protocol):
    """What the module of a family has."""

    def read_keys(self, raw: Mapping[str, Any], /) -> dict[str, Any]: ...
    def own_keys(self, config: HeadConfig, /) -> dict[str, Any]: ...
    def layer_tensors(
        self, config: HeadConfig, input_width: int, /
    ) -> dict[str, tuple[int, ...]]: ...


def _layers(family: Family) -> _Layers:
    return gemma4_head_layers if family == "gemma4" else qwen3_head_layers
