"""Places of a pass's rows in pages of keys and values.

Lengths and page tables live on the device and no shape depends on them, so that a captured graph
reads them again at each replay.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dspark_kernels.kv_codes import Cached, coded

PAGE = 256  # positions of a page


def num_pages_for(length: int) -> int:
    return -(-length // PAGE)


@dataclass(frozen=True, slots=True)
class PagedRows:
    """The rows of a pass, request after request, on the device: int32, starts int64 too.

    Row i of request r stands at position starts[r] + i and is row row_starts[r] + i of the pass.
    `max_rows` and `num_pages` bound the rows of a request and the pages that it reads.
    """

    slots: torch.Tensor  # [R]
    starts: torch.Tensor  # [R]
    row_starts: torch.Tensor  # [R + 1]
    max_rows: int
    num_pages: int
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


def write_rows(
    rows: PagedRows,
    tables: torch.Tensor,
    cached: Sequence[Cached],
    fresh: Sequence[torch.Tensor],
) -> None:
    """fresh [N, kv_heads, D] of every row into its place in cached [pages, kv_heads, PAGE, D]."""
    positions = rows.positions()
    pages = tables[rows.slot_of_row(), positions // PAGE].long()
    for pool, new in zip(cached, fresh, strict=True):
        at = (pages, slice(None), positions % PAGE)
        if isinstance(pool, torch.Tensor):
            pool[at] = new
        else:
            pool.codes[at], pool.scales[at] = coded(new, pool.codes.dtype)


def gather_request(cached: Cached, table: torch.Tensor, length: int) -> torch.Tensor:
    """The first `length` positions of a request with this table: [kv_heads, length, D]; of codes,
    their numbers in float32."""
    used = table[: num_pages_for(length)].long()
    pages = cached[used] if isinstance(cached, torch.Tensor) else cached.numbers(used)
    return pages.transpose(0, 1).flatten(1, 2)[:, :length]
