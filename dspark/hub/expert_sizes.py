"""How many routed experts a model has, and how long each is: what of it a token does not read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dspark.checkpoints.deepseek_v4_config import MODEL_TYPE

MATRICES = 3  # of an expert: gate, up, down
FP4_BYTE = 17 / 32  # bytes of a number in 4 bits, with a byte of scale for 32 of them
NUMBER_BYTES = {"fp8": 1.0, "mxfp4": FP4_BYTE}  # by quant_method; others are not packed
COUNTS = ("n_routed_experts", "num_local_experts", "num_experts")


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """`num_bytes` of one expert, as it is stored; `per_token` are read in each of `layers`."""

    layers: int
    per_layer: int
    per_token: int
    num_bytes: int

    @property
    def count(self) -> int:
        return self.layers * self.per_layer

    @property
    def total_bytes(self) -> int:
        return self.count * self.num_bytes

    @property
    def token_bytes(self) -> int:
        return self.layers * self.per_token * self.num_bytes


def expert_bytes(hidden_size: int, inner_size: int, number_bytes: float) -> int:
    return int(MATRICES * hidden_size * inner_size * number_bytes)


def expert_sizes(config: Mapping[str, Any]) -> ExpertSizes | None:
    """None for a model without routed experts, or with a config that does not tell them."""
    config = config.get("text_config", config)
    count = next((config[name] for name in COUNTS if config.get(name)), 0)
    inner = config.get("moe_intermediate_size") or config.get("intermediate_size")
    try:
        per_token, hidden = int(config["num_experts_per_tok"]), int(config["hidden_size"])
        size = expert_bytes(hidden, int(inner), _number_bytes(config))  # type: ignore[arg-type]
        layers = int(config["num_hidden_layers"]) - len(config.get("mlp_only_layers") or ())
        found = ExpertSizes(layers, int(count), per_token, size)
    except (KeyError, TypeError, ValueError):
        return None
    return found if min(found.layers, found.per_layer, found.per_token, size) > 0 else None


def _number_bytes(config: Mapping[str, Any]) -> float:
    if config.get("model_type") == MODEL_TYPE and config.get("expert_dtype") == "fp4":
        return FP4_BYTE
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return NUMBER_BYTES.get(str(method), 2.0)
