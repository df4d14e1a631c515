"""Keys and values of all requests in one pool; a slot is one request's share of it.

Rows beyond a slot's `length` are scratch: written by a pass, kept only once committed.
"""

import weakref
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch

from dspark_kernels.host_memory import give_back_freed

MIN_CAPACITY = 256


class KVSlot:
    """One request's rows. `close` returns them to the pool; one that was only dropped is added to
    `dropped` when it is garbage-collected, which the pool returns before it looks for room."""

    def __init__(self, index: int, release: Callable[[int], None], dropped: deque[int]) -> None:
        self.index = index
        self.length = 0
        self._release = release
        # only told: the collector may run in any thread, and amid the pool's own work
        self._finalizer = weakref.finalize(self, dropped.append, index)

    def close(self) -> None:
        """May be called again: rows are returned once."""
        if self._finalizer.detach():
            self._release(self.index)


class SlotPool(Protocol):
    """Rows or pages of requests."""

    def open(self) -> KVSlot: ...

    def fork(self, slot: KVSlot, length: int) -> KVSlot:
        """A slot that begins with the first `length` positions of another, or all it has."""
        ...

    def held_bytes(self, slots: Collection[KVSlot]) -> int:
        """Memory that these hold, what they share counted once."""
        ...


class KVPool:
    """A buffer [2, slots, kv_heads, capacity, D] per layer; slots and capacity grow by doubling,
    one layer at a time, so that little is held twice."""

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        # zeros, not empty: a masked key still enters the sum, and 0 times NaN is NaN
        shape = (2, 1, num_kv_heads, MIN_CAPACITY, head_dim)
        self._buffers = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(num_layers)]
        self._free = [0]
        self._dropped: deque[int] = deque()

    def open(self) -> KVSlot:
        while self._dropped:
            self.release(self._dropped.popleft())
        if not self._free:
            num_slots = self._buffers[0].shape[1]
            self._grow(num_slots=2 * num_slots)
            self._free = list(range(2 * num_slots - 1, num_slots - 1, -1))
        return KVSlot(self._free.pop(), self.release, self._dropped)

    def release(self, index: int) -> None:
        self._free.append(index)

    @torch.inference_mode()
    def fork(self, slot: KVSlot, length: int) -> KVSlot:
        """A slot with a copy of the first `length` rows of another, or of all it has."""
        fresh = self.open()
        fresh.length = length = min(length, slot.length)
        for buffer in self._buffers:
            buffer[:, fresh.index, :, :length] = buffer[:, slot.index, :, :length]
        return fresh

    def held_bytes(self, slots: Collection[KVSlot]) -> int:
        """Memory that these hold."""
        of_slot = sum(buffer[:, 0].numel() * buffer.itemsize for buffer in self._buffers)
        return len(slots) * of_slot

    def reserve(self, length: int) -> None:
        """Make room for requests of `length` rows."""
        capacity = self._buffers[0].shape[3]
        if length > capacity:
            self._grow(capacity=max(length, 2 * capacity))

    def _grow(self, *, num_slots: int = 0, capacity: int = 0) -> None:
        for index, old in enumerate(self._buffers):
            two, slots, heads, old_capacity, head_dim = old.shape
            grown = old.new_zeros(
                two, num_slots or slots, heads, capacity or old_capacity, head_dim
            )
            grown[:, :slots, :, :old_capacity] = old
            self._buffers[index] = grown
        give_back_freed()

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, each [slots, kv_heads, capacity, D]."""
        keys, values = self._buffers[index].unbind(0)
        return keys, values


class RowPlan:
    """Destinations of one pass's flattened rows: row i of request r has position length + i.

    Made once per pass and used by every layer. `block` rows of a request see each other only up to
    themselves (causal) or all of them (a draft block); with a window, keys less than that many
    positions in front of them.
    """

    def __init__(
        self,
        slots: Sequence[KVSlot],
        sizes: Sequence[int],
        *,
        causal: bool,
        window: int | None = None,
    ) -> None:
        self.sizes = list(sizes)
        self.causal, self.window = causal, window
        self.starts = [slot.length for slot in slots]
        self.slots = [slot.index for slot in slots]
        self.end = max(start + size for start, size in zip(self.starts, sizes, strict=True))
        spans = zip(self.starts, sizes, strict=True)
        rows = [at for start, n in spans for at in range(start, start + n)]
        self.positions = torch.tensor(rows, dtype=torch.long)

    @property
    def num_requests(self) -> int:
        return len(self.sizes)

    @property
    def is_whole(self) -> bool:
        """Whether every row of a single request sees every key."""
        fits = self.window is None or self.end <= self.window
        return self.num_requests == 1 and not self.causal and fits


class BatchedRows:
    """Index tensors for several requests at once, padded to the longest block."""

    def __init__(self, plan: RowPlan, num_keys: int) -> None:
        """`num_keys` are read from every slot, at least plan.end."""
        self.first_slot = min(plan.slots)
        self.num_slots = max(plan.slots) - self.first_slot + 1
        self.num_rows = max(plan.sizes)
        sizes = torch.tensor(plan.sizes)
        self.slot_of_row = torch.tensor(plan.slots).repeat_interleave(sizes)
        self.padded_slot = self.slot_of_row - self.first_slot
        self.row_in_block = torch.cat([torch.arange(n) for n in plan.sizes])
        self.mask = self._mask(plan, num_keys)

    def _mask(self, plan: RowPlan, num_keys: int) -> torch.Tensor:
        """[slots, rows, L] bool: True if a row may attend. Idle slots attend to their first key."""
        visible = torch.ones(self.num_slots, self.num_rows, 1, dtype=torch.long)
        first = torch.zeros_like(visible)
        for slot, start, size in zip(plan.slots, plan.starts, plan.sizes, strict=True):
            rows = torch.arange(1, self.num_rows + 1).clamp(max=size)
            visible[slot - self.first_slot, :, 0] = start + (rows if plan.causal else size)
            if plan.window is not None:
                first[slot - self.first_slot, :, 0] = start + rows - plan.window
        keys = torch.arange(num_keys)
        return (keys < visible) & (keys >= first)
