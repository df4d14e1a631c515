"""What a DeepSeek-V4 target remembers of a request, each thing at a place that its position fixes.

Keys of the window and rows that wait for their compression are in rings, compressed entries and the
indexer's keys in pages. Rows behind a request's length are garbage that the next pass overwrites
before anybody sees it, so rolling back is setting the length.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch

from dspark.checkpoints.deepseek_v4_cache_layout import (
    POSITIONS,
    WINDOW,
    entry_places,
    raw_cells,
    ring_places,
    window_cells,
)
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.kvcache.page_pool import PagedPool
from dspark.kvcache.row_pool import KVSlot


class Stretch(NamedTuple):
    """The next rows of one request: positions `start` to `end`, rows `first` on of the pass."""

    slot: KVSlot
    start: int
    end: int
    first: int


def split_stretches(stretches: Sequence[Stretch], most: int) -> list[list[Stretch]]:
    """In passes of at most `most` rows, in order; `first` counts from the beginning of its pass."""
    passes: list[list[Stretch]] = [[]]
    room = most
    for slot, start, end, _ in stretches:
        while start < end:
            if room == 0:
                passes.append([])
                room = most
            stop = min(end, start + room)
            passes[-1].append(Stretch(slot, start, stop, most - room))
            room -= stop - start
            start = stop
    return passes


class Rings:
    """Of one request, in one piece of memory. `written`: positions below it were written at some
    time."""

    def __init__(self, config: DeepseekV4TargetConfig, memory: torch.Tensor, written: int) -> None:
        self.memory, self.written = memory, written
        self._places, _ = ring_places(config)

    def of(self, layer: int, name: str = WINDOW) -> torch.Tensor:
        """[cells, D], or of a compressor's raw rows [cells, 2, columns]."""
        start, cells, width = self._places[layer, name]
        ring = self.memory[start : start + cells * width].view(cells, width)
        return ring if name == WINDOW else ring.unflatten(1, (2, -1))


class RequestCaches:
    """Of all requests, on one device; `pool` holds the pages."""

    def __init__(self, config: DeepseekV4TargetConfig, device: torch.device | None = None) -> None:
        self._config, self._device = config, device or torch.device("cpu")
        self._places, width = entry_places(config)
        self.pool = PagedPool(1, 1, width, self._device, torch.float32, num_pages=1)
        self._rings: dict[int, Rings] = {}

    def open(self) -> KVSlot:
        slot = self.pool.open()
        memory = torch.empty(ring_places(self._config)[1], device=self._device)
        self._rings[slot.index] = Rings(self._config, memory, 0)
        return slot

    def close(self, slot: KVSlot) -> None:
        slot.close()
        self._rings.pop(slot.index, None)

    def rings(self, slot: KVSlot) -> Rings:
        return self._rings[slot.index]

    def stretches(self, slots: Sequence[KVSlot], sizes: Sequence[int]) -> list[Stretch]:
        """The next rows of these requests, with pages for them."""
        found, first = [], 0
        for slot, size in zip(slots, sizes, strict=True):
            self.pool.reserve(slot.index, slot.length + size, slot.length)
            found.append(Stretch(slot, slot.length, slot.length + size, first))
            first += size
        return found

    def wrote(self, stretches: Sequence[Stretch]) -> None:
        """All layers have written these rows."""
        for each in stretches:
            rings = self.rings(each.slot)
            rings.written = max(rings.written, each.end)

    def can_cut(self, slot: KVSlot, length: int) -> bool:
        """Whether a request may go on after its first `length` positions: what it then needs of
        the rings must not be overwritten yet."""
        config, written = self._config, self.rings(slot).written
        needed = [(max(0, length - config.window + 1), window_cells(config))]
        needed += [
            (first_raw(config, layer, length), raw_cells(config, layer))
            for layer in range(config.num_layers)
            if config.ratios[layer]
        ]
        return all(first >= written - cells for first, cells in needed)

    def fork(self, slot: KVSlot, length: int) -> KVSlot | None:
        """As Target.fork."""
        length = min(length, slot.length)
        if not self.can_cut(slot, length):
            return None
        fresh, old = self.pool.fork(slot, length), self.rings(slot)
        self._rings[fresh.index] = Rings(self._config, old.memory.clone(), old.written)
        return fresh

    def held_bytes(self, slots: Collection[KVSlot]) -> int:
        rings = sum(self.rings(slot).memory.nbytes for slot in slots)
        return rings + self.pool.held_bytes(slots)

    def entries(self, layer: int, name: str) -> torch.Tensor:
        """[pages, entries of a page, width] of a layer's compressor."""
        half, offset, count, width = self._places[layer, name]
        numbers = self.halves()[half].flatten(1)[:, offset : offset + count * width]
        found: torch.Tensor = numbers.unflatten(1, (count, width))
        return found

    def halves(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of all pages, each [pages, 1, POSITIONS, D]."""
        first, second = self.pool.layer(0)
        assert isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
        return first, second

    def find(self, slot: KVSlot, layer: int, entries: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Page and place in it of these entries [n] of a request."""
        count = POSITIONS // self._config.ratios[layer]
        table = self.pool.tables[slot.index]
        return table[entries // count].long(), entries % count


def first_raw(config: DeepseekV4TargetConfig, layer: int, length: int) -> int:
    """The first position whose raw row a window that closes at `length` or later still needs:
    windows that overlap need the one before, too."""
    ratio = config.ratios[layer]
    return max(0, length // ratio - config.selects[layer]) * ratio
