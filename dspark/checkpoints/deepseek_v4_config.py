"""The shape of the DSpark head inside a DeepSeek-V4 target, from the target's own config.json."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from dspark.checkpoints.config_values import LARGEST_SIZE, positive
from dspark.checkpoints.deepseek_v4_layout import block_shapes, collapse_shapes, expert_shapes
from dspark.checkpoints.dspark_config import LARGEST_BLOCK
from dspark.checkpoints.head_config import MarkovType
from dspark.config import Algorithm
from dspark.errors import CheckpointError, PairMismatchError

MODEL_TYPE = "deepseek_v4"
SUCCESSOR = "deepseek_v41"
QUANTISED_RUN = 64  # dimensions of a key that share a scale
MOST_SINKHORN_STEPS = 1000
ENGINES = "vLLM and SGLang run it with its target."
SHARED_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "head_dim": "head_dim",
    "rope_dim": "qk_rope_head_dim",
    "query_rank": "q_lora_rank",
    "output_rank": "o_lora_rank",
    "output_groups": "o_groups",
    "expert_size": "moe_intermediate_size",
    "num_experts": "n_routed_experts",
    "experts_per_token": "num_experts_per_tok",
    "num_streams": "hc_mult",
    "sinkhorn_steps": "hc_sinkhorn_iters",
    "window": "sliding_window",
    "max_positions": "max_position_embeddings",
}
SHARED_NUMBERS = {
    "routed_scale": "routed_scaling_factor",
    "swiglu_limit": "swiglu_limit",
    "stream_eps": "hc_eps",
}
# values the drafter implements; others would need a forward that is not established
ESTABLISHED = {
    "num_key_value_heads": 1,
    "n_shared_experts": 1,
    "scoring_func": "sqrtsoftplus",
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "expert_dtype": "fp4",
}


class SharedSizes(Protocol):
    """What is checked of both configs."""

    @property
    def num_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def rope_dim(self) -> int: ...

    @property
    def output_groups(self) -> int: ...

    @property
    def num_experts(self) -> int: ...

    @property
    def experts_per_token(self) -> int: ...

    @property
    def sinkhorn_steps(self) -> int: ...

    @property
    def scale_block(self) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekV4HeadConfig:
    """Sizes of a head of `num_stages` blocks of the target's own kind, each over a window.

    `target_layer_ids` may reach the last layer, unlike other heads': the taps are taken from its
    streams, before the final norm.
    """

    num_stages: int
    vocab_size: int
    hidden_size: int
    num_target_layers: int
    num_heads: int
    head_dim: int
    rope_dim: int
    query_rank: int
    output_rank: int
    output_groups: int
    expert_size: int
    num_experts: int
    experts_per_token: int
    num_streams: int
    sinkhorn_steps: int
    window: int
    block_size: int
    mask_token_id: int
    markov_rank: int
    max_positions: int
    target_layer_ids: tuple[int, ...]
    scale_block: tuple[int, int]
    routed_scale: float
    swiglu_limit: float
    rope_theta: float
    rms_norm_eps: float
    stream_eps: float

    @property
    def algorithm(self) -> Algorithm:
        return "dspark"

    @property
    def markov_type(self) -> MarkovType:
        return "vanilla"

    @property
    def has_confidence(self) -> bool:
        return True

    def check_target(self, *, vocab_size: int, hidden_size: int, num_layers: int) -> None:
        """Raises PairMismatchError where the head lies in another target's files."""
        head = (self.vocab_size, self.hidden_size, self.num_target_layers)
        if head != (vocab_size, hidden_size, num_layers):
            raise PairMismatchError(
                f"the head lies in a target of vocabulary, width and depth {head}, and not in this "
                f"one of {(vocab_size, hidden_size, num_layers)}",
                "Give the same folder as target and as head.",
            )

    @property
    def tap_width(self) -> int:
        return len(self.target_layer_ids) * self.hidden_size

    @property
    def num_layers(self) -> int:
        return self.num_stages

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], num_stages: int) -> "DeepseekV4HeadConfig":
        """Raises CheckpointError naming the key that is missing, wrong or unsupported.

        num_stages is counted in the index: num_nextn_predict_layers belongs to another head.
        """
        try:
            config = cls._parse(raw, num_stages)
            config._check()
            return config
        except KeyError as error:
            raise CheckpointError(
                f"config.json of the target has no {error.args[0]!r}", ENGINES
            ) from error
        except (TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"config.json of the target is malformed: {error}") from error

    @classmethod
    def _parse(cls, raw: Mapping[str, Any], num_stages: int) -> "DeepseekV4HeadConfig":
        _refuse_unestablished(raw, num_stages)
        return cls(
            **shared_sizes(raw),
            num_stages=num_stages,
            num_target_layers=int(raw["num_hidden_layers"]),
            block_size=int(raw["dspark_block_size"]),
            mask_token_id=int(raw["dspark_noise_token_id"]),
            markov_rank=int(raw["dspark_markov_rank"]),
            target_layer_ids=tuple(int(layer) for layer in raw["dspark_target_layer_ids"]),
            rope_theta=positive(raw, "rope_theta"),
        )

    def _check(self) -> None:
        for field in fields(self):
            size = getattr(self, field.name)
            if field.type is int and not 1 <= size < LARGEST_SIZE and field.name != "mask_token_id":
                raise ValueError(f"{field.name} {size} is out of range")
        plain = self.head_dim - self.rope_dim
        if plain <= 0 or plain % QUANTISED_RUN:
            raise ValueError(f"qk_rope_head_dim {self.rope_dim} does not fit {self.head_dim}")
        if self.block_size > LARGEST_BLOCK:
            raise ValueError("dspark_block_size is out of range")
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(f"dspark_noise_token_id {self.mask_token_id} is not a valid token")
        taps = self.target_layer_ids
        if not taps or min(taps) < 0 or max(taps) >= self.num_target_layers:
            raise ValueError(
                f"dspark_target_layer_ids {list(taps)} are not valid layers of the target"
            )
        check_shared(self)


def shared_sizes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that configs of the target and of its head have in common, by name. Raises
    KeyError for a key that is missing, TypeError and ValueError for one that is malformed."""
    rows, columns = raw["quantization_config"]["weight_block_size"]
    sizes = {field: int(raw[key]) for field, key in SHARED_SIZES.items()}
    numbers = {field: positive(raw, key) for field, key in SHARED_NUMBERS.items()}
    eps = positive({"rms_norm_eps": 1e-6} | dict(raw), "rms_norm_eps")
    return {**sizes, **numbers, "rms_norm_eps": eps, "scale_block": (int(rows), int(columns))}


def check_shared(config: SharedSizes) -> None:
    """Raises ValueError for sizes that neither the target nor its head can have."""
    if config.rope_dim % 2:
        raise ValueError(f"qk_rope_head_dim {config.rope_dim} does not fit {config.head_dim}")
    if config.num_heads % config.output_groups or config.experts_per_token > config.num_experts:
        raise ValueError("o_groups or num_experts_per_tok is out of range")
    if config.sinkhorn_steps > MOST_SINKHORN_STEPS:
        raise ValueError("hc_sinkhorn_iters is out of range")
    if min(config.scale_block) < 1:
        raise ValueError(f"weight_block_size {list(config.scale_block)} is out of range")


def refuse_unestablished(raw: Mapping[str, Any], what: str) -> None:
    """Raises CheckpointError for a value whose forward is not established; `what` cannot run."""
    for key, value in ESTABLISHED.items():
        if raw.get(key, value) != value:
            raise CheckpointError(
                f"the target's {key} is {str(raw[key])[:40]}, {what}",
                ENGINES,
            )


def refuse_successor(raw: Mapping[str, Any]) -> None:
    """Raises CheckpointError for DeepSeek-V4.1, with what its forward needs that is not here."""
    if raw.get("model_type") == SUCCESSOR:
        raise CheckpointError(
            f"DeepSeek-V4.1 ({SUCCESSOR}) cannot run: dspark lacks its n-gram memory, its FP8 "
            "blocks of 32 x 32 and its head's own layout",
            "dspark runs deepseek-v4-flash; vLLM runs V4.1.",
        )


def holds_own_head(raw: Mapping[str, Any]) -> bool:
    """Whether a target's config.json describes a DSpark head in the target's own files."""
    return "dspark_block_size" in raw


def _refuse_unestablished(raw: Mapping[str, Any], num_stages: int) -> None:
    refuse_successor(raw)
    if raw["model_type"] != MODEL_TYPE:
        raise CheckpointError(
            f"the DSpark head inside a {str(raw['model_type'])[:40]} target is laid out in a way "
            "that dspark cannot read",
            ENGINES,
        )
    refuse_unestablished(raw, "for which dspark cannot run the head")
    depth = int(raw["num_hidden_layers"])
    if any(raw.get("compress_ratios", ())[depth : depth + num_stages]):
        raise CheckpointError(
            "the DSpark head compresses its context, which dspark does not support", ENGINES
        )


def dense_shapes(config: DeepseekV4HeadConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor except the routed experts' and the scales."""
    hidden, streams = config.hidden_size, config.num_streams
    stage = block_shapes(config)
    last = f"mtp.{config.num_stages - 1}"
    return {
        **{f"mtp.{i}.{name}": s for i in range(config.num_stages) for name, s in stage.items()},
        "mtp.0.main_proj.weight": (hidden, config.tap_width),
        "mtp.0.main_norm.weight": (hidden,),
        f"{last}.norm.weight": (hidden,),
        **{f"{last}.{name}": shape for name, shape in collapse_shapes(hidden, streams).items()},
        f"{last}.markov_head.markov_w1.weight": (config.vocab_size, config.markov_rank),
        f"{last}.markov_head.markov_w2.weight": (config.vocab_size, config.markov_rank),
        f"{last}.confidence_head.proj.weight": (1, hidden + config.markov_rank),
    }


def count_own_parameters(config: DeepseekV4HeadConfig) -> int:
    """Parameters of the head alone: packed experts unpacked, scales not counted."""
    experts = sum(math.prod(shape) for shape in expert_shapes(config).values())
    dense = sum(math.prod(shape) for shape in dense_shapes(config).values())
    return dense + config.num_stages * config.num_experts * experts
