"""The context length of a model, from its config."""

from collections.abc import Iterator, Mapping
from typing import Any

from dspark.checkpoints.files import one_line
from dspark.errors import CheckpointError

# key by family; some state only their training length
NAMES = ("max_position_embeddings", "max_seq_len", "seq_length", "context_length")
UNSTATED = 1 << 20  # for models limited only by memory, such as state-space models


def context_limit(config: Any) -> int:
    """Number of positions, including RoPE scaling. Raises CheckpointError for invalid values."""
    stated = next((size for name in NAMES if (size := getattr(config, name, None))), UNSTATED)
    rope = getattr(config, "rope_parameters", None)
    try:
        limit = max(int(stated), *(int(size) for size in _scaled(rope or {}, stated)))
        if not 0 < limit <= 1 << 40:
            raise ValueError(f"{limit} tokens")
        return limit
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise CheckpointError(
            f"the target's context length is invalid ({one_line(error)})"
        ) from error


def _scaled(rope: Mapping[str, Any], stated: Any) -> Iterator[Any]:
    """Length reached by RoPE scaling. YaRN (Peng et al. 2023) and LongRoPE (Ding et al. 2024) state
    the length that they extend; linear and dynamic scaling extend the model's own, unless they
    apply to a few layers only (Gemma 3)."""
    nested = [part for part in rope.values() if isinstance(part, Mapping)]
    for part in nested or [rope]:
        kind, factor = part.get("rope_type"), part.get("factor") or 1
        if kind in ("yarn", "longrope"):
            yield (part.get("original_max_position_embeddings") or 0) * factor
        elif kind in ("linear", "dynamic") and not nested:
            yield stated * factor
    yield 0
