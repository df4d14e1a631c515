"""RoPE of DeepSeek-V4's target: adjacent pairs of the last dimensions, by tables of positions."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from dspark_kernels.rope_frequencies import rope_frequencies

STEP = 256  # positions that are computed together, so that an angle's bits depend on it alone


class Turn(NamedTuple):
    """cos and sin of rows [N, pairs]."""

    cos: torch.Tensor
    sin: torch.Tensor

    def back(self) -> "Turn":
        return Turn(self.cos, -self.sin)


class RotationTable:
    """cos and sin of all positions so far, [positions, pairs]."""

    def __init__(self, rope: Mapping[str, Any], num_dims: int) -> None:
        self._frequencies, self._factor = rope_frequencies(rope, num_dims)
        pairs = num_dims // 2
        self._cos, self._sin = torch.empty(0, pairs), torch.empty(0, pairs)

    def at(self, positions: torch.Tensor) -> Turn:
        """positions int64 [N]."""
        if len(positions):
            self._reach(int(positions.max()))
        return Turn(self._cos[positions], self._sin[positions])

    def tables(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of at least the first `length` positions."""
        self._reach(length - 1)
        return self._cos, self._sin

    def _reach(self, position: int) -> None:
        cos, sin, reached = [self._cos], [self._sin], len(self._cos)
        while reached <= position:
            steps = torch.arange(reached, reached + STEP).unsqueeze(-1).float()
            angles = steps * self._frequencies
            cos.append(angles.cos() * self._factor)
            sin.append(angles.sin() * self._factor)
            reached += STEP
        if len(cos) > 1:
            self._cos, self._sin = torch.cat(cos), torch.cat(sin)


def rotated(x: torch.Tensor, turn: Turn) -> torch.Tensor:
    """x [N, ..., D]: the last dimensions turned by the angles of its row."""
    cos, sin = turn
    while cos.dim() < x.dim():
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    fixed, turning = x.split([x.shape[-1] - 2 * cos.shape[-1], 2 * cos.shape[-1]], dim=-1)
    even, odd = turning.unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return torch.cat([fixed, pairs.flatten(-2)], dim=-1)
