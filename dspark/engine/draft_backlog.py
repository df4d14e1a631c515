"""Committed tokens that a request's drafter has not taken in, while drafting is parked.

They wait until the drafter is needed, which may be never: taking them in costs a hundredth of what
plain decoding does. Their taps lie in blocks of memory that requests hand on to each other, since
the first use of fresh memory costs as much again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dspark.drafters.base import Drafter, DraftSlot
from dspark_kernels.one_thread import one_thread

MOST_BYTES = 64 << 20  # of taps, of all requests together, and of blocks that nobody needs
MOST_KEPT_BYTES = 4 << 20  # of a finished request
BLOCK_BYTES = 256 << 10  # one row at least


class TapBlocks:
    """Blocks [rows, T * H], those that nobody needs any more first."""

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []

    def take(self, like: torch.Tensor) -> torch.Tensor:
        """A block for rows such as these [n, T * H]."""
        if self._free:
            return self._free.pop()
        row_bytes = max(like.shape[1] * like.element_size(), 1)
        return like.new_empty(max(BLOCK_BYTES // row_bytes, 1), like.shape[1])

    def give_back(self, blocks: Sequence[torch.Tensor]) -> None:
        if blocks and len(self._free) * blocks[0].nbytes < MOST_BYTES:
            self._free.extend(blocks)


@dataclass(slots=True)
class DraftBacklog:
    """Token ids [n] and their taps in order, in `blocks` of `memory`."""

    ids: list[int] = field(default_factory=list)
    blocks: list[torch.Tensor] = field(default_factory=list)
    memory: TapBlocks | None = None

    def __bool__(self) -> bool:
        return bool(self.ids)

    @property
    def num_bytes(self) -> int:
        """Of the taps; the last block may be larger than what it holds."""
        return len(self.ids) * self.blocks[0][0].nbytes if self.blocks else 0

    def add(self, ids: Sequence[int], taps: torch.Tensor, memory: TapBlocks) -> None:
        """Copies the taps [n, T * H], which the next pass overwrites. All come from one memory."""
        self.memory = memory
        while len(taps):
            at = len(self.ids) % len(self.blocks[0]) if self.blocks else 0
            if not at:
                self.blocks.append(memory.take(taps))
            rows = self.blocks[-1][at : at + len(taps)]
            rows.copy_(taps[: len(rows)])
            self.ids.extend(ids[: len(rows)])
            ids, taps = ids[len(rows) :], taps[len(rows) :]

    def taps(self) -> torch.Tensor:
        """[n, T * H]; until it is cleared."""
        if len(self.blocks) > 1:
            with one_thread():
                return torch.cat(self.blocks)[: len(self.ids)]
        return self.blocks[0][: len(self.ids)]

    def clear(self) -> None:
        if self.memory is not None:
            self.memory.give_back(self.blocks)
        self.ids.clear()
        self.blocks.clear()


@torch.inference_mode()
def catch_up(
    drafter: Drafter, slots: Sequence[DraftSlot], backlogs: Sequence[DraftBacklog]
) -> None:
    """The drafter takes in what these requests committed without it."""
    behind = [pair for pair in zip(slots, backlogs, strict=True) if pair[1]]
    if behind:
        taps = [backlog.taps() for _, backlog in behind]
        ids = [torch.tensor(backlog.ids, device=taps[0].device) for _, backlog in behind]
        drafter.extend([slot for slot, _ in behind], ids, taps)
        for _, backlog in behind:
            backlog.clear()
