"""A model's recommended sampling settings, from its generation_config.json."""

import math
from typing import Any

from dspark.checkpoints.model_folder import GENERATION, Folder, ModelFolder
from dspark.config import SamplingConfig


def sampling_defaults(folder: Folder) -> SamplingConfig:
    """Greedy unless do_sample is true; then the stated values, and all tokens by default."""
    folder = ModelFolder.of(folder)
    stated = folder.json(GENERATION) if folder.has(GENERATION) else {}
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
