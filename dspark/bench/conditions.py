"""The conditions of a bench: sampling, depth of the context, thinking. All arms run under each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from dspark.config import SamplingConfig
from dspark.errors import InputError

FULL_TEMPERATURES = (0.0, 1.0)
FULL_DEPTHS = (0, 512, 2048)


@dataclass(frozen=True, slots=True)
class Condition:
    """`depth` tokens of other text come before each prompt; thinking None is the template's way."""

    sampling: SamplingConfig = SamplingConfig()
    depth: int = 0
    thinking: bool | None = None

    @property
    def name(self) -> str:
        parts = [f"T = {self.sampling.temperature:g}"]
        if self.sampling.acceptance == "coupling":
            parts.append(f"seed {self.sampling.seed}")
        if self.depth:
            parts.append(f"{self.depth:,} tokens of context")
        if self.thinking is not None:
            parts.append(f"thinking {'on' if self.thinking else 'off'}")
        return ", ".join(parts)


def conditions(
    sampling: SamplingConfig,
    temperatures: Sequence[float],
    depths: Sequence[int],
    thinking: Sequence[bool | None],
) -> tuple[Condition, ...]:
    """Every combination; an empty sequence keeps the default."""
    combined = product(temperatures or (sampling.temperature,), depths or (0,), thinking or (None,))
    return tuple(Condition(replace(sampling, temperature=t), d, think) for t, d, think in combined)


def check_depths(depths: Sequence[int], max_tokens: int, context_limit: int) -> None:
    """Raises InputError if an answer at the deepest would not fit, with room for its prompt."""
    room = context_limit - max_tokens - 256
    if depths and max(depths) > room:
        raise InputError(
            f"a context of {max(depths):,} tokens and an answer exceed the model's "
            f"{context_limit:,}",
            f"Use depths up to {max(room, 0):,}, or fewer --max-tokens.",
        )


def fitting_depths(max_tokens: int, context_limit: int) -> tuple[int, ...]:
    """Those of FULL_DEPTHS that fit."""
    return tuple(d for d in FULL_DEPTHS if d <= max(context_limit - max_tokens - 256, 0))
