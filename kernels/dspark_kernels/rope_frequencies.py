"""Frequencies of RoPE and of its scalings that are fixed: linear, Llama 3's and YaRN (2309.00071).

The arithmetic of transformers, step by step in its order, so that every bit is the same.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

FIXED_ROPES = ("default", "linear", "llama3", "yarn")
YARN_FAST, YARN_SLOW = 32.0, 1.0  # turns within the original context


def rope_frequencies(rope: Mapping[str, Any], head_dim: int) -> tuple[torch.Tensor, float]:
    """`rope` as rope_parameters of a config.json -> float32 [D/2], and what cos and sin are
    multiplied by. Raises KeyError, TypeError or ValueError for what makes no sense."""
    kind = rope.get("rope_type", "default")
    if kind not in FIXED_ROPES:
        raise ValueError(f"a rope of type {kind!r}")
    exponents = torch.arange(0, head_dim, 2).float() / head_dim
    frequencies = 1.0 / rope["rope_theta"] ** exponents
    if kind == "linear":
        return frequencies / rope["factor"], 1.0
    if kind == "llama3":
        return _llama3(frequencies, rope), 1.0
    if kind == "yarn":
        return _yarn(rope, head_dim), _yarn_scaling(rope)
    return frequencies, 1.0


def _llama3(frequencies: torch.Tensor, rope: Mapping[str, Any]) -> torch.Tensor:
    """Long waves stretched, short ones kept, those between by turns in the original context."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    waves = 2 * math.pi / frequencies
    stretched = torch.where(waves > original / low, frequencies / factor, frequencies)
    share = (original / waves - low) / (high - low)
    blended = (1 - share) * stretched / factor + share * stretched
    is_between = (waves >= original / high) & (waves <= original / low)
    return torch.where(is_between, blended, stretched)


def _yarn(rope: Mapping[str, Any], head_dim: int) -> torch.Tensor:
    """Between frequencies that turn often in the original context and those that turn seldom, a
    ramp from kept to stretched."""
    theta, factor = rope["rope_theta"], rope["factor"]
    powers = theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    low, high = _yarn_range(rope, head_dim, theta)
    span = high - low if high != low else 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    kept = 1 - ramp
    out: torch.Tensor = 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept
    return out


def _yarn_range(rope: Mapping[str, Any], head_dim: int, theta: float) -> tuple[float, float]:
    """Which frequencies the ramp begins and ends at."""
    original = rope["original_max_position_embeddings"]
    turns = (rope.get("beta_fast") or YARN_FAST, rope.get("beta_slow") or YARN_SLOW)
    low, high = (
        head_dim * math.log(original / (number * 2 * math.pi)) / (2 * math.log(theta))
        for number in turns
    )
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, head_dim - 1)


def _yarn_scaling(rope: Mapping[str, Any]) -> float:
    stated = rope.get("attention_factor")
    if stated is not None:
        return float(stated)
    factor, of_all, of_one = rope["factor"], rope.get("mscale_all_dim"), rope.get("mscale")

    def growth(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    return growth(of_one) / growth(of_all) if of_one and of_all else growth(1.0)
