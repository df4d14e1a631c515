"""The memory for keys and values on a device: the part that weights and graphs leave free."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dspark.config import RuntimeConfig
from dspark.errors import MemoryFullError
from dspark.hub.footprint import of_folders
from dspark.hub.memory_fit import room_for, rooms
from dspark.hub.memory_needed import pass_bytes, program_bytes, weight_bytes
from dspark.kvcache.caches import PagedCache
from dspark.kvcache.page_pool import PagedPool
from dspark.machine import free_memory, gigabytes

WORKSPACE = 1 << 30  # for passes and captured graphs
LEAST_PAGES = 8  # on a machine whose memory is nearly full
SCRATCH_PAGES = 1  # of idle lanes
SHARE = 0.9  # of the free memory beyond that


def page_bytes(cache: PagedCache) -> int:
    return cache.pool.page_bytes


def usable_bytes(device: str) -> int:
    """Bytes that keys and values may take on a device."""
    return max(0, int(SHARE * (free_memory(device) - WORKSPACE)))


def tokens_that_fit(target: Path, draft: Path | None, device: str) -> int:
    """Tokens of all requests that fit in memory next to the pair's weights."""
    of, free = of_folders(target, draft), free_memory(device)
    where = replace(room_for(RuntimeConfig(device), rooms()), total=free)
    held = weight_bytes(of, where) + pass_bytes(of, where) + program_bytes(of, where)
    room = SHARE * (free - held)
    return max(0, int(room / max(of.cache * where.cached_bytes, 1)))


def limit_pages(pools: Sequence[PagedPool], most: int, device: str) -> None:
    """What pools that grow together may grow to: `most` pages each, or as many as fit."""
    fitting = usable_bytes(device) // sum(pool.page_bytes for pool in pools)
    for pool in pools:
        pool.max_pages = max(min(most, fitting), min(most, LEAST_PAGES), pool.num_pages)


def free_unused(device: torch.device) -> None:
    """Give back what PyTorch's allocator holds and nobody uses, such as the parts of weights that
    were joined: it counts as taken."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def fix_pages(
    caches: list[PagedCache], num_slots: int, max_pages: int, max_length: int, *, leaves_room: bool
) -> None:
    """Give every cache `max_pages` for its requests, or as many as fit.

    `leaves_room`: a head may join the target later.
    """
    fixed = [cache.pool.num_pages for cache in caches if not cache.pool.grows]
    fresh = [cache for cache in caches if cache.pool.grows]
    if not fresh:
        return
    device = fresh[0].device
    free_unused(device)
    room = usable_bytes(str(device)) // (2 if leaves_room else 1)
    fitting = room // sum(page_bytes(cache) for cache in fresh)
    num_pages = min(fixed) if fixed else min(max_pages + SCRATCH_PAGES, fitting)
    if num_pages < 2 or num_pages > fitting:
        raise MemoryFullError(
            f"{gigabytes(room)} are left on {device} for keys and values, too little for a chat",
            "Close other programs that use the device, or use a smaller pair.",
        )
    for cache in fresh:
        try:
            cache.fix(num_pages, num_slots, max_length)
        except torch.OutOfMemoryError as error:
            raise MemoryFullError(
                f"{device} has no room for {num_pages} pages of keys and values",
                "Close other programs that use the device, or use a smaller pair.",
            ) from error
