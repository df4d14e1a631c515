"""The sizes of a DeepSeek-V4 target, from its config.json as published."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dspark.checkpoints.config_values import LARGEST_SIZE, positive
from dspark.checkpoints.deepseek_v4_config import ENGINES, ESTABLISHED, MODEL_TYPE
from dspark.errors import CheckpointError

CSA, HCA = 4, 128  # compress_ratios by name; 0 is a layer with a window alone
MOST_LAYERS, MOST_SINKHORN_STEPS = 1000, 1000
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
            _refuse_unestablished(raw)
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
        rows, columns = raw["quantization_config"]["weight_block_size"]
        scaling = raw.get("rope_scaling") or {"rope_type": "default"}
        compressed = {"rope_type": scaling.get("type"), "attention_factor": 1.0} | dict(scaling)
        return cls(
            vocab_size=int(raw["vocab_size"]),
            hidden_size=int(raw["hidden_size"]),
            num_layers=depth,
            num_heads=int(raw["num_attention_heads"]),
            head_dim=int(raw["head_dim"]),
            rope_dim=int(raw["qk_rope_head_dim"]),
            query_rank=int(raw["q_lora_rank"]),
            output_rank=int(raw["o_lora_rank"]),
            output_groups=int(raw["o_groups"]),
            expert_size=int(raw["moe_intermediate_size"]),
            num_experts=int(raw["n_routed_experts"]),
            experts_per_token=int(raw["num_experts_per_tok"]),
            num_hash_layers=int(raw["num_hash_layers"]),
            num_streams=int(raw["hc_mult"]),
            sinkhorn_steps=int(raw["hc_sinkhorn_iters"]),
            window=int(raw["sliding_window"]),
            index_heads=int(raw["index_n_heads"]),
            index_dim=int(raw["index_head_dim"]),
            index_top=int(raw["index_topk"]),
            max_positions=int(raw["max_position_embeddings"]),
            ratios=tuple(int(rates[ratio]) for ratio in ratios),
            selects=tuple(ratio == CSA for ratio in ratios),
            scale_block=(int(rows), int(columns)),
            routed_scale=positive(raw, "routed_scaling_factor"),
            swiglu_limit=positive(raw, "swiglu_limit"),
            rms_norm_eps=positive({"rms_norm_eps": 1e-6} | dict(raw), "rms_norm_eps"),
            stream_eps=positive(raw, "hc_eps"),
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
        if self.num_layers > MOST_LAYERS or self.sinkhorn_steps > MOST_SINKHORN_STEPS:
            raise ValueError("num_hidden_layers or hc_sinkhorn_iters is out of range")
        if self.rope_dim % 2 or self.rope_dim > min(self.head_dim, self.index_dim):
            raise ValueError(f"qk_rope_head_dim {self.rope_dim} does not fit {self.head_dim}")
        if self.num_heads % self.output_groups or self.experts_per_token > self.num_experts:
            raise ValueError("o_groups or num_experts_per_tok is out of range")
        if any(ratio < 0 or MOST_COMPRESSED % (ratio or 1) for ratio in self.ratios):
            raise ValueError(f"compress_ratios {sorted(set(self.ratios))} are not supported")
        if min(self.scale_block) < 1:
            raise ValueError(f"weight_block_size {list(self.scale_block)} is out of range")
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


def _refuse_unestablished(raw: Mapping[str, Any]) -> None:
    for key, value in ESTABLISHED.items():
        if raw.get(key, value) != value:
            raise CheckpointError(
                f"the target's {key} is {str(raw[key])[:40]}, which dspark cannot run", ENGINES
            )
