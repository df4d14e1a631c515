"""Keys and values of all requests in pages of one buffer, and where the rows of a pass go.

Lengths and page tables live on the device and no shape depends on them, so that a captured graph
reads them anew at each replay.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dspark_kernels.kv_cache import KVSlot, RowPlan

PAGE = 256  # positions of a page, and of a split of the attention


class PagedPool:
    """Buffer [layers, 2, pages, kv_heads, PAGE, D]; pages and table grow by doubling."""

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        num_pages: int = 4,
        num_slots: int = 1,
        max_length: int = PAGE,
        grows: bool = True,
    ) -> None:
        """What never grows keeps every address, as a captured graph needs."""
        self.grows = grows
        shape = (num_layers, 2, num_pages, num_kv_heads, PAGE, head_dim)
        self._buffer = torch.empty(shape, device=device, dtype=dtype)
        # row s: the pages of slot s, in order of position
        self.tables = torch.zeros(
            num_slots, num_pages_for(max_length), device=device, dtype=torch.int32
        )
        self._free_pages = list(range(num_pages - 1, -1, -1))
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._pages: dict[int, list[int]] = {}

    @property
    def num_pages(self) -> int:
        return self._buffer.shape[2]

    @property
    def num_free_pages(self) -> int:
        return len(self._free_pages)

    def open(self) -> KVSlot:
        if not self._free_slots and not self.grows:
            raise MemoryError("no slot is free in the pool of keys and values")
        if not self._free_slots:
            num_slots = self.tables.shape[0]
            self._grow_tables(num_slots=2 * num_slots)
            self._free_slots = list(range(2 * num_slots - 1, num_slots - 1, -1))
        index = self._free_slots.pop()
        self._pages[index] = []
        return KVSlot(self.release, index)

    def release(self, index: int) -> None:
        self._free_pages += reversed(self._pages.pop(index))
        self._free_slots.append(index)

    def reserve(self, index: int, length: int) -> None:
        """Pages for the first `length` positions of slot `index`."""
        pages, wanted = self._pages[index], num_pages_for(length)
        if len(pages) >= wanted:
            return
        if wanted > self.tables.shape[1]:
            self._grow_tables(num_columns=max(wanted, 2 * self.tables.shape[1]))
        fresh = [self._take_page() for _ in range(wanted - len(pages))]
        self.tables[index, len(pages) : wanted] = torch.tensor(fresh, dtype=torch.int32)
        pages += fresh

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, each [pages, kv_heads, PAGE, D]."""
        keys, values = self._buffer[index].unbind(0)
        return keys, values

    def _take_page(self) -> int:
        if not self._free_pages and not self.grows:
            raise MemoryError("no page is free in the pool of keys and values")
        if not self._free_pages:
            num_pages = self._buffer.shape[2]
            grown = self._buffer.new_empty(
                *self._buffer.shape[:2], 2 * num_pages, *self._buffer.shape[3:]
            )
            grown[:, :, :num_pages] = self._buffer
            self._buffer = grown
            self._free_pages = list(range(2 * num_pages - 1, num_pages - 1, -1))
        return self._free_pages.pop()

    def _grow_tables(self, *, num_slots: int = 0, num_columns: int = 0) -> None:
        old_slots, old_columns = self.tables.shape
        grown = self.tables.new_zeros(num_slots or old_slots, num_columns or old_columns)
        grown[:old_slots, :old_columns] = self.tables
        self.tables = grown


def num_pages_for(length: int) -> int:
    return -(-length // PAGE)


@dataclass(frozen=True, slots=True)
class PagedRows:
    """The rows of a pass, request after request, as int32 tensors on the device.

    Row i of request r stands at position starts[r] + i and is row row_starts[r] + i of the pass.
    `max_rows` and `num_splits` bound the rows of a request and the pages that it reads.
    """

    slots: torch.Tensor  # [R]
    starts: torch.Tensor  # [R]
    row_starts: torch.Tensor  # [R + 1]
    max_rows: int
    num_splits: int
    causal: bool

    @property
    def num_requests(self) -> int:
        return self.slots.shape[0]

    def positions(self) -> torch.Tensor:
        """Absolute position of every row [N], int64."""
        sizes = self.row_starts.diff()
        firsts = (self.starts - self.row_starts[:-1]).repeat_interleave(sizes)
        return torch.arange(firsts.shape[0], device=firsts.device) + firsts

    def slot_of_row(self) -> torch.Tensor:
        """[N] int64."""
        return self.slots.long().repeat_interleave(self.row_starts.diff())


def page_rows(plan: RowPlan, device: torch.device) -> PagedRows:
    """The plan's numbers on the device, in one transfer."""
    row_starts = [0]
    for size in plan.sizes:
        row_starts.append(row_starts[-1] + size)
    numbers = torch.tensor([*plan.slots, *plan.starts, *row_starts], dtype=torch.int32)
    slots, starts, ends = numbers.to(device).split([plan.num_requests] * 2 + [len(row_starts)])
    num_splits = num_pages_for(plan.end)
    return PagedRows(slots, starts, ends, max(plan.sizes), num_splits, plan.causal)


def write_rows(
    rows: PagedRows,
    tables: torch.Tensor,
    cached: Sequence[torch.Tensor],
    fresh: Sequence[torch.Tensor],
) -> None:
    """fresh [N, kv_heads, D] of every row into its place in cached [pages, kv_heads, PAGE, D]."""
    positions = rows.positions()
    pages = tables[rows.slot_of_row(), positions // PAGE].long()
    for pool, new in zip(cached, fresh, strict=True):
        pool[pages, :, positions % PAGE] = new


def gather_request(cached: torch.Tensor, table: torch.Tensor, length: int) -> torch.Tensor:
    """The first `length` positions of a request with this table: [kv_heads, length, D]."""
    pages = cached[table[: num_pages_for(length)].long()]
    return pages.transpose(0, 1).flatten(1, 2)[:, :length]
