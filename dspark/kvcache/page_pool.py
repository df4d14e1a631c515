"""Keys and values of all requests in pages of one buffer."""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence

import torch

from dspark.kvcache.row_pool import KVSlot, RowPlan
from dspark_kernels.cpu.step_words import Pages, PassRows
from dspark_kernels.host_memory import give_back_freed
from dspark_kernels.kv_codes import Cached, CodeKind, coded_bytes, split_codes
from dspark_kernels.paged_cache import PAGE, PagedRows, num_pages_for

NEARLY = 1.25


class PagedPool:
    """Buffer [layers, 2, pages, kv_heads, PAGE, D]; pages and table grow by doubling. Of codes, a
    head's part of a page is PAGE * (D + 4) bytes: its codes, then their scales.

    Slots may share pages: a page is free again once no slot holds it, and is copied before a slot
    writes to it while another holds it. `max_pages` is what a pool that grows may grow to, None
    for no limit.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        codes: CodeKind | None = None,
        num_pages: int = 4,
        num_slots: int = 1,
        max_length: int = PAGE,
        grows: bool = True,
    ) -> None:
        """A pool that never grows keeps its addresses, as a captured graph needs."""
        self.grows = grows
        self.max_pages: int | None = None if grows else num_pages
        self._codes, self._head_dim = codes, head_dim
        shape: tuple[int, ...] = (num_layers, 2, num_pages, num_kv_heads, PAGE, head_dim)
        if codes is not None:
            shape, dtype = (*shape[:4], PAGE * coded_bytes(head_dim)), torch.uint8
        self._buffer = torch.empty(shape, device=device, dtype=dtype)
        # row s: the pages of slot s, in order of position
        self.tables = torch.zeros(
            num_slots, num_pages_for(max_length), device=device, dtype=torch.int32
        )
        self._free_pages = list(range(num_pages - 1, -1, -1))
        self._num_holders = [0] * num_pages
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._pages: dict[int, list[int]] = {}
        self._dropped: deque[int] = deque()
        self._as_pages: Pages | None = None

    @property
    def num_pages(self) -> int:
        return self._buffer.shape[2]

    @property
    def num_free_pages(self) -> int:
        """Of those that are there; one that grows may have more."""
        self._return_dropped()
        return len(self._free_pages)

    @property
    def has_free_slot(self) -> bool:
        self._return_dropped()
        return self.grows or bool(self._free_slots)

    def can_reserve(self, slot: KVSlot, length: int) -> bool:
        """Whether `reserve` from the slot's length on finds enough pages."""
        if self.max_pages is None:
            return True
        pages = self._pages[slot.index]
        num_shared = sum(self._num_holders[page] > 1 for page in pages[slot.length // PAGE :])
        wanted = max(0, num_pages_for(length) - len(pages)) + num_shared
        return wanted <= self.num_free_pages + self.max_pages - self.num_pages

    @property
    def page_bytes(self) -> int:
        return self._buffer[:, :, 0].numel() * self._buffer.itemsize

    def held_bytes(self, slots: Collection[KVSlot]) -> int:
        """Memory that these hold, what they share counted once."""
        return self.num_held(slots) * self.page_bytes

    def num_held(self, slots: Iterable[KVSlot]) -> int:
        """Pages that these hold, each counted once."""
        return len({page for slot in slots for page in self._pages[slot.index]})

    def on_cpu(self) -> Pages:
        """As the CPU's kernels read them: the same object until a table changes."""
        if self._as_pages is None:
            self._as_pages = Pages(self._buffer, self.tables)
        return self._as_pages

    def rows_on_cpu(
        self,
        slots: Sequence[KVSlot],
        sizes: Sequence[int],
        tokens: Sequence[int] = (),
        *,
        causal: bool,
    ) -> PassRows:
        """The next rows of each slot, request after request, whose pages are reserved; a row sees
        those before it and itself (causal), or all of its request's."""
        rows = PassRows([*tokens], [], [], [])
        for slot, size in zip(slots, sizes, strict=True):
            start, end = slot.length, slot.length + size
            self.reserve(slot.index, end, start)
            rows.positions.extend(range(start, end))
            rows.slots.extend([slot.index] * size)
            rows.visible.extend(range(start + 1, end + 1) if causal else [end] * size)
        return rows

    def open(self) -> KVSlot:
        self._return_dropped()
        if not self._free_slots and not self.grows:
            raise MemoryError("no slot is free in the pool of keys and values")
        if not self._free_slots:
            num_slots = self.tables.shape[0]
            self._grow_tables(num_slots=2 * num_slots)
            self._free_slots = list(range(2 * num_slots - 1, num_slots - 1, -1))
        index = self._free_slots.pop()
        self._pages[index] = []
        return KVSlot(index, self.release, self._dropped)

    def release(self, index: int) -> None:
        for page in reversed(self._pages.pop(index)):
            self._drop(page)
        self._free_slots.append(index)

    def _return_dropped(self) -> None:
        while self._dropped:
            self.release(self._dropped.popleft())

    def reserve(self, index: int, length: int, start: int = 0) -> None:
        """Pages for the first `length` positions of slot `index`; those from position `start` on
        are its alone, so that it may write to them."""
        pages, num_pages = self._pages[index], num_pages_for(length)
        first = start // PAGE
        shared = [at for at in range(first, len(pages)) if self._num_holders[pages[at]] > 1]
        if len(pages) >= num_pages and not shared:
            return
        if num_pages > self.tables.shape[1]:
            self._grow_tables(num_columns=max(num_pages, 2 * self.tables.shape[1]))
        for at in shared:
            pages[at] = self._copy_of(pages[at])
        while len(pages) < num_pages:
            pages.append(self._take_page())
        self.tables[index, first : len(pages)] = torch.tensor(pages[first:], dtype=torch.int32)
        self._as_pages = None

    def reserve_rows(self, plan: RowPlan) -> None:
        """Pages for all rows of a pass."""
        for index, start, size in zip(plan.slots, plan.starts, plan.sizes, strict=True):
            self.reserve(index, start + size, start)

    def fork(self, slot: KVSlot, length: int) -> KVSlot:
        """A slot that begins with the first `length` positions of another, or all it has."""
        length = min(length, slot.length)
        pages = self._pages[slot.index][: num_pages_for(length)]
        fresh = self.open()
        for page in pages:
            self._num_holders[page] += 1
        self._pages[fresh.index] = [*pages]
        self.tables[fresh.index, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
        self._as_pages = None
        fresh.length = length
        return fresh

    def check(self) -> None:
        """Every page is free, or held by as many slots as it counts."""
        self._return_dropped()
        held = Counter(page for pages in self._pages.values() for page in pages)
        assert all(self._num_holders[page] == count for page, count in held.items())
        num_lost = self.num_pages - len(held) - len(self._free_pages)
        assert num_lost == 0, f"{num_lost} pages are neither held nor free"

    def layer(self, index: int) -> tuple[Cached, Cached]:
        """Keys and values of one layer, each [pages, kv_heads, PAGE, D]."""
        keys, values = self._buffer[index].unbind(0)
        if self._codes is None:
            return keys, values
        return split_codes(keys, self._head_dim, self._codes), split_codes(
            values, self._head_dim, self._codes
        )

    def _take_page(self) -> int:
        self._return_dropped()
        if not self._free_pages:
            self._grow_pages()
        page = self._free_pages.pop()
        self._num_holders[page] = 1
        return page

    @torch.inference_mode(False)  # passes write to it in any mode
    def _grow_pages(self) -> None:
        before = self.num_pages
        num_pages = 2 * before
        if self.max_pages is not None and NEARLY * num_pages >= self.max_pages:
            num_pages = self.max_pages  # not to copy all once more for a few
        if num_pages <= before:
            raise MemoryError("no page is free in the pool of keys and values")
        grown = self._buffer.new_empty(*self._buffer.shape[:2], num_pages, *self._buffer.shape[3:])
        grown[:, :, :before] = self._buffer
        self._buffer, self._as_pages = grown, None
        self._free_pages = list(range(num_pages - 1, before - 1, -1))
        self._num_holders += [0] * (num_pages - before)
        give_back_freed()

    def _copy_of(self, page: int) -> int:
        fresh = self._take_page()
        self._buffer[:, :, fresh] = self._buffer[:, :, page]
        self._drop(page)
        return fresh

    def _drop(self, page: int) -> None:
        self._num_holders[page] -= 1
        if not self._num_holders[page]:
            self._free_pages.append(page)

    @torch.inference_mode(False)
    def _grow_tables(self, *, num_slots: int = 0, num_columns: int = 0) -> None:
        old_slots, old_columns = self.tables.shape
        grown = self.tables.new_zeros(num_slots or old_slots, num_columns or old_columns)
        grown[:old_slots, :old_columns] = self.tables
        self.tables, self._as_pages = grown, None


def page_rows(plan: RowPlan, device: torch.device) -> PagedRows:
    """The plan's numbers on the device, in one transfer."""
    row_starts = [0]
    for size in plan.sizes:
        row_starts.append(row_starts[-1] + size)
    numbers = torch.tensor([*plan.slots, *plan.starts, *row_starts], dtype=torch.int32)
    slots, starts, ends = numbers.to(device).split([plan.num_requests] * 2 + [len(row_starts)])
    num_pages = num_pages_for(plan.end)
    return PagedRows(slots, starts, ends, max(plan.sizes), num_pages, plan.causal)
