"""Values of a config.json, checked as they are read."""

import math
from collections.abc import Mapping
from typing import Any

LARGEST_SIZE = 2**31  # of any dimension; a larger one means a damaged file


def architecture_of(raw: Mapping[str, Any]) -> str:
    """The first that it names; "?" if it names none."""
    names = raw.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else "?"


def positive(raw: Mapping[str, Any], key: str) -> float:
    value = float(raw[key])
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError(f"{key} {raw[key]!r} is not positive")
    return value


def positive_or_none(raw: Mapping[str, Any], key: str) -> float | None:
    return None if raw.get(key) is None else positive(raw, key)
