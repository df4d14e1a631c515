"""How much memory the keys and values of a device get: what weights and graphs leave free."""

import torch

from dspark.errors import MemoryFullError
from dspark.hub.fit import free_memory, gigabytes
from dspark_kernels import PagedCache
from dspark_kernels.paged_cache import PAGE, num_pages_for

SHARE = 0.85  # of what is free; passes and captured graphs need the rest


def page_bytes(cache: PagedCache) -> int:
    shape = cache.shape
    numbers = 2 * shape.num_layers * shape.num_kv_heads * PAGE * shape.head_dim
    return numbers * cache.dtype.itemsize


def fix_pages(caches: list[PagedCache], num_slots: int, max_length: int) -> None:
    """Give every cache as many pages as there is room for, or as could ever be used."""
    fixed = [cache.pool.num_pages for cache in caches if not cache.pool.grows]
    fresh = [cache for cache in caches if cache.pool.grows]
    if not fresh:
        return
    device = fresh[0].device
    room = int(SHARE * free_memory(str(device)))
    fitting = room // sum(page_bytes(cache) for cache in fresh)
    wanted = num_slots * num_pages_for(max_length)
    num_pages = min(fixed) if fixed else min(wanted, fitting)
    if num_pages < 2 or num_pages > fitting:
        raise MemoryFullError(
            f"{gigabytes(room)} are left on {device} for keys and values, too little for a chat",
            "Close what else uses the device, or take a smaller pair.",
        )
    for cache in fresh:
        try:
            cache.fix(num_pages, num_slots, max_length)
        except torch.OutOfMemoryError as error:
            raise MemoryFullError(
                f"{device} has no room for {num_pages} pages of keys and values",
                "Close what else uses the device, or take a smaller pair.",
            ) from error
