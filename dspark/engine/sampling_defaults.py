"""A model's recommended sampling settings, from its generation_config.json."""

import math
from pathlib import Path
from typing import Any

from dspark.checkpoints.files import read_json
from dspark.config import SamplingConfig


def sampling_defaults(directory: Path) -> SamplingConfig:
    """Greedy unless do_sample is true; then the stated values, and all tokens by default."""
    path = directory / "generation_config.json"
    stated = read_json(path) if path.exists() else {}
    if stated.get("do_sample") is not True:
        return SamplingConfig()
    top_k = stated.get("top_k")
    return SamplingConfig(
        temperature=_number(stated.get("temperature"), 0.0, math.inf),
        top_k=top_k if isinstance(top_k, int) and top_k > 0 else 0,
        top_p=_number(stated.get("top_p"), math.ulp(0.0), 1.0),
    )


def _number(value: Any, least: float, most: float) -> float:
    """Missing or invalid values become 1, which does not change a distribution."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and least <= value <= most else 1.0
