"""Committed tokens that a request's drafter has not taken in, while drafting is parked.

They wait until the drafter is needed, which may be never: taking them in costs a hundredth of what
plain decoding does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dspark.drafters.base import Drafter, DraftSlot

MOST_BYTES = 64 << 20  # of taps, of all requests together
MOST_KEPT_BYTES = 4 << 20  # of a finished request


@dataclass(slots=True)
class DraftBacklog:
    """Token ids [n] and taps [n, T * H] in order."""

    ids: list[torch.Tensor] = field(default_factory=list)
    taps: list[torch.Tensor] = field(default_factory=list)
    num_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.ids)

    def add(self, ids: torch.Tensor, taps: torch.Tensor) -> None:
        """Both are nobody else's."""
        self.ids.append(ids)
        self.taps.append(taps)
        self.num_bytes += taps.nbytes

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All of it, which is then gone."""
        taken = _joined(self.ids), _joined(self.taps)
        self.clear()
        return taken

    def clear(self) -> None:
        self.ids.clear()
        self.taps.clear()
        self.num_bytes = 0


@torch.inference_mode()
def catch_up(
    drafter: Drafter, slots: Sequence[DraftSlot], backlogs: Sequence[DraftBacklog]
) -> None:
    """The drafter takes in what these requests committed without it."""
    behind = [pair for pair in zip(slots, backlogs, strict=True) if pair[1]]
    if behind:
        taken = [backlog.take() for _, backlog in behind]
        ids, taps = zip(*taken, strict=True)
        drafter.extend([slot for slot, _ in behind], ids, taps)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
