"""Room for requests in caches of pages, taken as their texts grow."""

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol, runtime_checkable

from dspark.config import MOST_KEPT, EngineConfig
from dspark.drafters.base import Drafter
from dspark.engine.request import ActiveRequest, Request
from dspark.errors import InputError, MemoryFullError
from dspark.kvcache.caches import PagedCache
from dspark.kvcache.page_pool import PagedPool
from dspark.kvcache.row_pool import KVSlot
from dspark.kvcache.sizing import SCRATCH_PAGES, fix_pages, limit_pages
from dspark.targets.base import DeviceTarget, Target
from dspark_kernels.paged_cache import PAGE, num_pages_for

OTHER_SLOTS = MOST_KEPT + 4  # of finished requests, scratch, and one for a check


@runtime_checkable
class OnPages(Protocol):
    """What keeps its requests on pages: a cache, or a target or drafter on a CPU."""

    pool: PagedPool


class PageRoom:
    """Pages of a target, and of its drafter if that has its own. Where nothing is on pages there is
    room for whatever comes."""

    def __init__(self, target: Target, holders: Sequence[OnPages], slack: int) -> None:
        """`holders`: the target's first. `slack` positions beyond a request's tokens are
        written."""
        self._target, self._holders, self._slack = target, holders, slack

    @property
    def pools(self) -> list[PagedPool]:
        return [holder.pool for holder in self._holders]

    @property
    def is_fixed(self) -> bool:
        """Whether the memory is taken already, so that what nobody runs on costs nothing."""
        return any(not pool.grows for pool in self.pools)

    def check(self, request: Request) -> None:
        """Raises MemoryFullError for a request that does not fit even alone. Without a limit of its
        own, it ends where the memory does."""
        most = request.stop.max_tokens
        length = self._length(len(request.prompt_ids) + (1 if most is None else most))
        total = min([_total(pool) for pool in self.pools], default=num_pages_for(length))
        if num_pages_for(length) > total:
            raise MemoryFullError(
                f"prompt and answer may take {length} tokens, "
                f"the memory of {self._target.device} holds {total * PAGE}",
                "Ask for fewer tokens, or shorten the prompt.",
            )

    def fits(self, num_tokens: int, beside: Collection[ActiveRequest]) -> bool:
        """Whether so many tokens fit beside these requests, and a page more for each of them."""
        wanted = num_pages_for(self._length(num_tokens)) + len(beside)
        return all(
            wanted <= _total(holder.pool) - holder.pool.num_held(self._slots(index, beside))
            for index, holder in enumerate(self._holders)
        )

    @property
    def has_free_slot(self) -> bool:
        return all(pool.has_free_slot for pool in self.pools)

    def reserve(self, active: ActiveRequest, num_tokens: int) -> bool:
        """Pages for so many tokens of an open request, and for what a round writes behind them;
        False if there are too few, and then none was taken."""
        length = self._length(num_tokens)
        own = [
            (holder.pool, slot)
            for index, holder in enumerate(self._holders)
            for slot in self._slots(index, [active])
        ]
        if not all(pool.can_reserve(slot, length) for pool, slot in own):
            return False
        for pool, slot in own:
            pool.reserve(slot.index, length, slot.length)
        return True

    def check_idle(self) -> None:
        """Checks, while no request is running, that no page leaked."""
        for pool in self.pools:
            pool.check()

    def _length(self, num_tokens: int) -> int:
        """Positions that may be written."""
        return min(num_tokens, self._target.spec.context_limit) + self._slack

    def _slots(self, index: int, requests: Collection[ActiveRequest]) -> Iterator[KVSlot]:
        """Of the target, or of its drafter."""
        for active in requests:
            if index == 0:
                yield active.slot
            elif active.draft_slot is not None:
                yield active.draft_slot.context


def page_counts(cache: PagedCache) -> list[int]:
    """The numbers of pages that rounds are captured for: powers of two, and the most that one
    request can have."""
    most = min(cache.pool.tables.shape[1], cache.pool.num_pages)
    counts = [1 << n for n in range(most.bit_length())]
    return counts if counts[-1] == most else [*counts, most]


def page_count(cache: PagedCache, length: int) -> int:
    """The one that holds so many positions: at most twice as many as needed."""
    needed = num_pages_for(length)
    return next((count for count in page_counts(cache) if count >= needed), needed)


class FixedPageRoom(PageRoom):
    """Memory that is taken once."""

    def __init__(
        self,
        target: DeviceTarget,
        caches: list[PagedCache],
        config: EngineConfig,
        capacity: int,
        slack: int,
        *,
        leaves_room: bool = False,
    ) -> None:
        """`caches`: the target's first. `capacity` requests may run at once."""
        # pages of a discarded round are still in use when the next begins
        num_slots = 2 * config.max_requests + OTHER_SLOTS
        max_length = target.spec.context_limit + slack
        pages = capacity * num_pages_for(max_length)
        pages = min(pages, _asked_pages(config, [cache.pool for cache in caches], pages))
        fix_pages(caches, num_slots, pages, max_length, leaves_room=leaves_room)
        num_slots = caches[0].pool.tables.shape[0]  # an engine before this one may have fixed it
        self.capacity = min(capacity, (num_slots - OTHER_SLOTS) // 2)
        super().__init__(target, caches, slack)


def growing_room(
    target: Target, drafter: Drafter | None, config: EngineConfig, capacity: int
) -> PageRoom:
    """Memory that is taken when it is needed, as for a target in codes on a CPU."""
    if not isinstance(target, OnPages):
        return PageRoom(target, (), 0)
    holders: list[OnPages] = [target]
    if isinstance(drafter, OnPages):
        holders.append(drafter)
    slack = 2 + (drafter.block_size if drafter is not None else 0)
    room = PageRoom(target, holders, slack)
    most = capacity * num_pages_for(target.spec.context_limit + slack)
    limit_pages(room.pools, _asked_pages(config, room.pools, most), str(target.device))
    return room


def _asked_pages(config: EngineConfig, pools: Sequence[PagedPool], most: int) -> int:
    """Of each pool for requests; `most` where nothing is asked for."""
    if config.cache_tokens is not None:
        most = num_pages_for(config.cache_tokens)
    if config.cache_bytes is None:
        return most
    fitting = config.cache_bytes // sum(pool.page_bytes for pool in pools)
    if not fitting:
        raise InputError(
            f"{config.cache_bytes:,} bytes hold no page of {PAGE} tokens' keys and values",
            "Give a larger --kv-memory.",
        )
    return min(most, fitting)


def _total(pool: PagedPool) -> int:
    """Pages for requests."""
    if pool.max_pages is None:
        raise ValueError("a pool whose pages are counted has a limit")
    return pool.max_pages - (0 if pool.grows else SCRATCH_PAGES)
