"""The sizes of a DeepSeek-V4 target, from its config.json as published."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dspark.checkpoints.config_values import LARGEST_SIZE, positive
from dspark.checkpoints.deepseek_v4_config import (
    ENGINES,
    ESTABLISHED,
    MODEL_TYPE,
    check_shared,
    refuse_unestablished,
    shared_sizes,
)
from dspark.errors import CheckpointError

CSA, HCA = 4, 128  # compress_ratios by name; 0 is a layer with a window alone
MOST_LAYERS = 1000
MOST_COMPRESSED = 256  # positions of a page, which holds whole entries


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekV4TargetConfig:
    """`ratios`: of every layer, how many positions become one compressed entry, 0 for none;
    `selects`: whether an indexer selects among a layer's entries. Rope settings as of
    rope_frequencies: of layers without compression, and of those with it."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    rope_dim: int
    query_rank: int
    output_rank: int
    output_groups: int
    expert_size: int
    num_experts: int
    experts_per_token: int
    num_hash_layers: int
    num_streams: int
    sinkhorn_steps: int
    window: int
    index_heads: int
    index_dim: int
    index_top: int
    max_positions: int
    ratios: tuple[int, ...]
    selects: tuple[bool, ...]
    scale_block: tuple[int, int]
    routed_scale: float
    swiglu_limit: float
    rms_norm_eps: float
    stream_eps: float
    window_rope: Mapping[str, Any]
    compressed_rope: Mapping[str, Any]
    eos_token_id: Any = None

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "DeepseekV4TargetConfig":
        """Raises CheckpointError naming the key that is missing, wrong or unsupported."""
        try:
            refuse_unestablished(raw, "which dspark cannot run")
            config = cls._parse(raw)
            config._check()
            return config
        except KeyError as error:
            raise CheckpointError(f"config.json has no {error.args[0]!r}", ENGINES) from error
        except (TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"config.json is malformed: {error}") from error

    @classmethod
    def _parse(cls, raw: Mapping[str, Any]) -> "DeepseekV4TargetConfig":
        depth = int(raw["num_hidden_layers"])
        rates = {0: 0, CSA: raw.get("compress_rate_csa", CSA), HCA: raw.get("compress_rate_hca")}
        rates[HCA] = rates[HCA] or HCA
        ratios = [int(ratio) for ratio in raw["compress_ratios"][:depth]]
        if len(ratios) != depth or not set(ratios) <= set(rates):
            raise ValueError(f"compress_ratios {str(ratios)[:60]} do not fit {depth} layers")
        scaling = raw.get("rope_scaling") or {"rope_type": "default"}
        compressed = {"rope_type": scaling.get("type"), "attention_factor": 1.0} | dict(scaling)
        return cls(
            **shared_sizes(raw),
            num_layers=depth,
            num_hash_layers=int(raw["num_hash_layers"]),
            index_heads=int(raw["index_n_heads"]),
            index_dim=int(raw["index_head_dim"]),
            index_top=int(raw["index_topk"]),
            ratios=tuple(int(rates[ratio]) for ratio in ratios),
            selects=tuple(ratio == CSA for ratio in ratios),
            window_rope={"rope_theta": positive(raw, "rope_theta")},
            compressed_rope=compressed | {"rope_theta": positive(raw, "compress_rope_theta")},
            eos_token_id=raw.get("eos_token_id"),
        )

    def get_text_config(self) -> "DeepseekV4TargetConfig":
        """As transformers' configs have it."""
        return self

    def _check(self) -> None:
        for field in fields(self):
            size, least = getattr(self, field.name), 1 - (field.name == "num_hash_layers")
            if field.type is int and not least <= size < LARGEST_SIZE:
                raise ValueError(f"{field.name} {size} is out of range")
        check_shared(self)
        if self.num_layers > MOST_LAYERS:
            raise ValueError("num_hidden_layers is out of range")
        if self.rope_dim > min(self.head_dim, self.index_dim):
            raise ValueError(f"qk_rope_head_dim {self.rope_dim} does not fit {self.head_dim}")
        if any(ratio < 0 or MOST_COMPRESSED % (ratio or 1) for ratio in self.ratios):
            raise ValueError(f"compress_ratios {sorted(set(self.ratios))} are not supported")
        if not math.isfinite(float(self.compressed_rope.get("factor", 1.0))):
            raise ValueError("rope_scaling is out of range")


def is_published_layout(raw: Mapping[str, Any]) -> bool:
    """Whether config.json is DeepSeek's own for a V4, with FP8 blocks and FP4 experts."""
    quantization = raw.get("quantization_config")
    return (
        raw.get("model_type") == MODEL_TYPE
        and "compress_ratios" in raw
        and isinstance(quantization, dict)
        and quantization.get("quant_method") == "fp8"
        and raw.get("expert_dtype") == ESTABLISHED["expert_dtype"]
    )
