"""Committed tokens that a request's drafter has not taken in, while drafting is parked.

They wait until the drafter is needed, which may be never: taking them in costs a hundredth of what
plain decoding does. Their taps lie in blocks of memory that requests hand on to each other, since
the first use of fresh memory costs as much again.
"""

from collections.abc import Sequence
from ctypes import memmove
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from dspark.drafters.base import Drafter, DraftSlot
from dspark_kernels.one_thread import one_thread

MOST_BYTES = 64 << 20  # of taps, of all requests together, and of blocks that nobody needs
MOST_KEPT_BYTES = 4 << 20  # of a finished request
BLOCK_BYTES = 256 << 10  # one row at least


class TapBlock(NamedTuple):
    """rows [n, T * H], where they lie and how many bytes a row has."""

    rows: torch.Tensor
    address: int
    row_bytes: int

    def write(self, at: int, taps: torch.Tensor, start: int, count: int) -> None:
        """Copies rows [start, start + count) of the taps to `at`."""
        if taps.is_cpu and taps.is_contiguous():
            # behind a pass, which leaves the caches cold, torch's copy takes ten times as long
            source, target = taps.data_ptr() + start * self.row_bytes, at * self.row_bytes
            memmove(self.address + target, source, count * self.row_bytes)
        else:
            self.rows[at : at + count].copy_(taps[start : start + count])


class TapBlocks:
    """Blocks for rows of one width, first those that nobody needs any more."""

    def __init__(self) -> None:
        self._free: list[TapBlock] = []

    def take(self, like: torch.Tensor) -> TapBlock:
        """A block for rows such as these [n, T * H]."""
        if self._free:
            return self._free.pop()
        row_bytes = like.shape[1] * like.element_size()
        rows = like.new_empty(max(BLOCK_BYTES // max(row_bytes, 1), 1), like.shape[1])
        return TapBlock(rows, rows.data_ptr(), row_bytes)

    def give_back(self, blocks: Sequence[TapBlock]) -> None:
        if blocks and len(self._free) * blocks[0].rows.nbytes < MOST_BYTES:
            self._free.extend(blocks)


@dataclass(slots=True)
class DraftBacklog:
    """Token ids [n] and their taps in order, in `blocks` of `memory`."""

    ids: list[int] = field(default_factory=list)
    blocks: list[TapBlock] = field(default_factory=list)
    memory: TapBlocks | None = None

    def __bool__(self) -> bool:
        return bool(self.ids)

    @property
    def num_bytes(self) -> int:
        """Of the taps; the last block may be larger than what it holds."""
        return len(self.ids) * self.blocks[0].row_bytes if self.blocks else 0

    def add(self, ids: Sequence[int], taps: torch.Tensor, start: int, memory: TapBlocks) -> None:
        """Copies the rows of these ids, from `start` in taps [N, T * H], which the next pass
        overwrites. All come from one memory."""
        self.memory = memory
        end = start + len(ids)
        while start < end:
            at = len(self.ids) % len(self.blocks[0].rows) if self.blocks else 0
            if not at:
                self.blocks.append(memory.take(taps))
            count = min(end - start, len(self.blocks[0].rows) - at)
            self.blocks[-1].write(at, taps, start, count)
            self.ids.extend(ids[:count])
            ids, start = ids[count:], start + count

    def taps(self) -> torch.Tensor:
        """[n, T * H]; until it is cleared."""
        if len(self.blocks) > 1:
            with one_thread():
                return torch.cat([block.rows for block in self.blocks])[: len(self.ids)]
        return self.blocks[0].rows[: len(self.ids)]

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
