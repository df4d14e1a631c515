"""RoPE scaled for a longer context, as a head's config.json states it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dspark.checkpoints.config_values import positive, positive_or_none
from dspark.errors import CheckpointError

YARN_KEYS = {
    *("type", "rope_type", "rope_theta", "partial_rotary_factor", "factor"),
    *("original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"),
}


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
