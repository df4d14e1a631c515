"""RoPE whose frequencies depend on the text's length: LongRoPE (Ding et al. 2024), dynamic NTK.

transformers takes the length from the last position of a pass, so a row would depend on the other
rows. Here every row has its own length: in a prompt, the prompt's; when decoded, the number of
tokens up to and including itself. Blocks and chunks then change nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch

from dspark.errors import CheckpointError

# their `generate` recomputes the whole text when it outgrows the short factors
RECOMPUTED = ("phi3", "phimoe", "phi4_multimodal")
Era = tuple[float, ...]  # rows of one era are rotated by the same frequencies


class RopeLengths:
    """Wraps the rotary modules of a model; `lengths` is set before each pass."""

    def __init__(self, model: Any) -> None:
        self.lengths: Sequence[int] = ()
        self._name = type(model).__name__
        self._switches: set[int] = set()
        self._growing: set[int] = set()
        for module in model.modules():
            for prefix, kind in _kinds(module):
                self._learn(module, prefix, kind)
            if any(_is_variable(kind) for _, kind in _kinds(module)):
                module.forward = self._standing_before(module, module.forward)

    @property
    def is_variable(self) -> bool:
        return bool(self._switches or self._growing)

    def era(self, length: int) -> Era:
        """Of a row that is rotated as part of a text of `length` tokens."""
        short = (float(length > switch) for switch in sorted(self._switches))
        return (*short, *(float(max(length, size)) for size in sorted(self._growing)))

    def recomputed_at(self, config: Any) -> int | None:
        """The length beyond which transformers recomputes the whole cache, if it does."""
        if not self.is_variable or config.model_type not in RECOMPUTED:
            return None
        return getattr(config, "original_max_position_embeddings", None)

    def _learn(self, module: Any, prefix: str, kind: str) -> None:
        if "dynamic" in kind:
            self._growing.add(int(module.original_max_seq_len))
        elif kind == "longrope":
            rope = module.config.rope_parameters
            settings = rope[prefix.removesuffix("_")] if prefix else rope
            self._switches.add(int(settings["original_max_position_embeddings"]))

    def _standing_before(self, module: Any, rotate: Callable[..., Any]) -> Callable[..., Any]:
        def forward(x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **more: Any) -> Any:
            if position_ids.shape[-1] != len(self.lengths):
                raise CheckpointError(f"{self._name} cannot be decoded with this RoPE type")
            tables, start = [], 0
            for _, run in groupby(self.lengths, key=self.era):
                lengths = list(run)
                positions = position_ids[..., start : start + len(lengths)]
                start += len(lengths)
                last = torch.full_like(positions[..., :1], lengths[0] - 1)
                _forget(module)  # transformers keeps the frequencies of a longer text
                rotated = rotate(x, torch.cat([positions, last], dim=-1), *args, **more)
                tables.append(_without_last(rotated))
            return _joined(tables)

        return forward


def _kinds(module: Any) -> Iterator[tuple[str, str]]:
    """The buffer prefix and RoPE type of each rotary embedding in a module."""
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, str):
        yield "", kinds
    elif isinstance(kinds, dict):
        yield from ((f"{layer_type}_", kind) for layer_type, kind in kinds.items())


def _is_variable(kind: str) -> bool:
    return kind == "longrope" or "dynamic" in kind


def _forget(module: Any) -> None:
    """Put dynamic frequencies back to those of a short text."""
    for prefix, kind in _kinds(module):
        if "dynamic" in kind:
            setattr(module, f"{prefix}inv_freq", getattr(module, f"{prefix}original_inv_freq"))
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _without_last(rotated: Any) -> Any:
    if isinstance(rotated, torch.Tensor):
        return rotated[..., :-1, :]
    return tuple(each[..., :-1, :] for each in rotated)


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts, dim=-2)
    return tuple(torch.cat(each, dim=-2) for each in zip(*parts, strict=True))
