"""How many tokens a model's own config lets it see."""

from collections.abc import Iterator, Mapping
from typing import Any

from dspark.checkpoints.files import one_line
from dspark.errors import CheckpointError

# as the families call it; some state only what they were trained with
NAMES = ("max_position_embeddings", "max_seq_len", "seq_length", "context_length")
UNSTATED = 1 << 20  # for models that nothing but memory limits, such as state-space ones


def context_limit(config: Any) -> int:
    """Positions, with those that a scaled RoPE adds. Raises CheckpointError for nonsense."""
    stated = next((size for name in NAMES if (size := getattr(config, name, None))), UNSTATED)
    rope = getattr(config, "rope_parameters", None)
    try:
        limit = max(int(stated), *(int(size) for size in _scaled(rope or {}, stated)))
        if not 0 < limit <= 1 << 40:
            raise ValueError(f"{limit} tokens")
        return limit
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise CheckpointError(f"the target's context makes no sense ({one_line(error)})") from error


def _scaled(rope: Mapping[str, Any], stated: Any) -> Iterator[Any]:
    """What the scalings reach. yarn and LongRoPE state the length that they stretch; linear and
    dynamic ones stretch the model's own, unless they hold for a few layers alone (Gemma 3)."""
    nested = [part for part in rope.values() if isinstance(part, Mapping)]
    for part in nested or [rope]:
        kind, factor = part.get("rope_type"), part.get("factor") or 1
        if kind in ("yarn", "longrope"):
            yield (part.get("original_max_position_embeddings") or 0) * factor
        elif kind in ("linear", "dynamic") and not nested:
            yield stated * factor
    yield 0
