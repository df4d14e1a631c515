"""Committed tokens that a request's drafter has not taken in, while drafting is parked."""

from dataclasses import dataclass, field

import torch

FULL = 64  # rows: that many in one pass cost little, and few taps are held


@dataclass(slots=True)
class DraftBacklog:
    """Token ids [n] and taps [n, T * H] in order."""

    ids: list[torch.Tensor] = field(default_factory=list)
    taps: list[torch.Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.ids))

    @property
    def is_full(self) -> bool:
        return len(self) >= FULL

    def add(self, ids: torch.Tensor, taps: torch.Tensor) -> None:
        """`taps` are a part of a pass, which may be overwritten by the next one."""
        self.ids.append(ids)
        self.taps.append(taps.clone())

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All of it, which is then gone."""
        taken = _joined(self.ids), _joined(self.taps)
        self.clear()
        return taken

    def clear(self) -> None:
        self.ids.clear()
        self.taps.clear()


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
