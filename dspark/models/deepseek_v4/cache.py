"""What a DeepSeek-V4 target remembers of a request, each thing at a place that its position fixes.

Keys of the window and rows that wait for their compression are in rings, compressed entries and the
indexer's keys in pages. Rows behind a request's length are garbage that the next pass overwrites
before anybody sees it, so rolling back is setting the length.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.kvcache.page_pool import PagedPool
from dspark.kvcache.row_pool import KVSlot
from dspark_kernels.paged_cache import PAGE

MAX_ROWS = 64  # of a request, in a pass that may be taken back


class Stretch(NamedTuple):
    """The next rows of one request: positions `start` to `end`, rows `first` on of the pass."""

    slot: KVSlot
    start: int
    end: int
    first: int


@dataclass(slots=True)
class Rings:
    """Of one request. `written`: positions below it were written at some time."""

    window: list[torch.Tensor]  # by layer, [cells, D]
    raw: dict[tuple[int, str], torch.Tensor]  # by layer and compressor, [cells, 2, columns]
    written: int = 0

    def all(self) -> list[torch.Tensor]:
        return [*self.window, *self.raw.values()]


class RequestCaches:
    """Of all requests; `pool` holds the pages."""

    def __init__(self, config: DeepseekV4TargetConfig) -> None:
        self._config = config
        self._places, width = _places(config)
        self.pool = PagedPool(1, 1, width, torch.device("cpu"), torch.float32, num_pages=1)
        self._rings: dict[int, Rings] = {}

    def open(self) -> KVSlot:
        slot = self.pool.open()
        self._rings[slot.index] = self._new_rings()
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
        needed = [(max(0, length - config.window + 1), _window_cells(config))]
        needed += [
            (first_raw(config, layer, length), _raw_cells(config, layer))
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
        window = [ring.clone() for ring in old.window]
        raw = {place: ring.clone() for place, ring in old.raw.items()}
        self._rings[fresh.index] = Rings(window, raw, old.written)
        return fresh

    def held_bytes(self, slots: Collection[KVSlot]) -> int:
        rings = sum(ring.nbytes for slot in slots for ring in self.rings(slot).all())
        return rings + self.pool.held_bytes(slots)

    def entries(self, layer: int, name: str) -> torch.Tensor:
        """[pages, entries of a page, width] of a layer's compressor."""
        half, offset, count, width = self._places[layer, name]
        pages = self.pool.layer(0)[half]
        assert isinstance(pages, torch.Tensor)
        numbers = pages.flatten(1)[:, offset : offset + count * width]
        found: torch.Tensor = numbers.unflatten(1, (count, width))
        return found

    def find(self, slot: KVSlot, layer: int, entries: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Page and place in it of these entries [n] of a request."""
        count = PAGE // self._config.ratios[layer]
        table = self.pool.tables[slot.index]
        return table[entries // count].long(), entries % count

    def _new_rings(self) -> Rings:
        config, raw = self._config, {}
        for layer in range(config.num_layers):
            for name, width in compressors(config, layer).items():
                columns = width * (1 + config.selects[layer])
                raw[layer, name] = torch.empty(_raw_cells(config, layer), 2, columns)
        cells = _window_cells(config), config.head_dim
        return Rings([torch.empty(cells) for _ in range(config.num_layers)], raw)


def compressors(config: DeepseekV4TargetConfig, layer: int) -> dict[str, int]:
    """A layer's compressors and the widths of their entries."""
    if not config.ratios[layer]:
        return {}
    found = {"compressor": config.head_dim}
    return found | ({"indexer.compressor": config.index_dim} if config.selects[layer] else {})


def first_raw(config: DeepseekV4TargetConfig, layer: int, length: int) -> int:
    """The first position whose raw row a window that closes at `length` or later still needs:
    windows that overlap need the one before, too."""
    ratio = config.ratios[layer]
    return max(0, length // ratio - config.selects[layer]) * ratio


def _window_cells(config: DeepseekV4TargetConfig) -> int:
    return config.window - 1 + MAX_ROWS


def _raw_cells(config: DeepseekV4TargetConfig, layer: int) -> int:
    return config.ratios[layer] * (1 + config.selects[layer]) - 1 + MAX_ROWS


Place = tuple[int, int, int, int]  # half of the page, first number, entries, width


def _places(config: DeepseekV4TargetConfig) -> tuple[dict[tuple[int, str], Place], int]:
    """Where in a page each layer's entries are, and the numbers a position takes in a half."""
    ends, places = [0, 0], {}
    for layer in range(config.num_layers):
        for name, width in compressors(config, layer).items():
            half, count = ends.index(min(ends)), PAGE // config.ratios[layer]
            places[layer, name] = half, ends[half], count, width
            ends[half] += count * width
    return places, max(1, -(-max(ends) // PAGE))
