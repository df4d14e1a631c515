"""Keys and values of all requests in pages of one buffer."""

import torch

from dspark.kvcache.row_pool import KVSlot, RowPlan
from dspark_kernels.paged_cache import PAGE, PagedRows, num_pages_for


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
        """A pool that never grows keeps its addresses, as a captured graph needs."""
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


def page_rows(plan: RowPlan, device: torch.device) -> PagedRows:
    """The plan's numbers on the device, in one transfer."""
    row_starts = [0]
    for size in plan.sizes:
        row_starts.append(row_starts[-1] + size)
    numbers = torch.tensor([*plan.slots, *plan.starts, *row_starts], dtype=torch.int32)
    slots, starts, ends = numbers.to(device).split([plan.num_requests] * 2 + [len(row_starts)])
    num_splits = num_pages_for(plan.end)
    return PagedRows(slots, starts, ends, max(plan.sizes), num_splits, plan.causal)
