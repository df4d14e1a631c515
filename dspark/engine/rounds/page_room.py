"""Room for requests in caches of pages: sized once, and reserved when a request starts."""

import torch

from dspark.config import EngineConfig
from dspark.engine.request import ActiveRequest, Request
from dspark.errors import MemoryFullError
from dspark.kvcache.caches import PagedCache
from dspark.kvcache.sizing import fix_pages
from dspark.targets.base import DeviceTarget
from dspark_kernels.paged_cache import PAGE, num_pages_for

OTHER_SLOTS = 4  # scratch, the last finished request, and one for a check


class PageRoom:
    """Pages of a target, and of its drafter if that keeps its own in the same way."""

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
        """`caches`: the target's first. `capacity` requests may run at once, `slack` positions
        beyond a request's tokens are written."""
        self._target, self._caches, self._slack = target, caches, slack
        # pages of a discarded round are still in use when the next begins
        num_slots = 2 * config.max_requests + OTHER_SLOTS
        max_length = target.spec.context_limit + slack
        pages = capacity * num_pages_for(max_length)
        if config.cache_tokens is not None:
            pages = min(pages, num_pages_for(config.cache_tokens))
        fix_pages(caches, num_slots, pages, max_length, leaves_room=leaves_room)
        num_slots = caches[0].pool.tables.shape[0]  # an engine before this one may have fixed it
        self.capacity = min(capacity, (num_slots - OTHER_SLOTS) // 2)

    def check(self, request: Request) -> None:
        """As RoundRunner.check."""
        total = min(cache.pool.num_pages for cache in self._caches) - 1
        if self._pages_of(request) > total:
            raise MemoryFullError(
                f"prompt and answer may take {self._length_of(request)} tokens, "
                f"the memory of {self._target.device} holds {total * PAGE}",
                "Ask for fewer tokens, or shorten the prompt.",
            )

    def has_room(self, request: Request) -> bool:
        pages = self._pages_of(request)
        return all(cache.pool.num_free_pages >= pages for cache in self._caches)

    @torch.inference_mode()
    def reserve(self, active: ActiveRequest) -> None:
        """As RoundRunner.reserve."""
        length = self._length_of(active.request)
        draft = active.draft_slot
        slots = [active.slot]
        if draft is not None and len(self._caches) > 1:
            slots.append(draft.context)
        try:
            for cache, slot in zip(self._caches, slots, strict=False):
                cache.pool.reserve(slot.index, length, slot.length)
        except MemoryError as error:
            raise MemoryFullError(
                f"{length} tokens do not fit next to the other requests on {self._target.device}",
                "Ask for fewer tokens, or end other requests.",
            ) from error

    def check_idle(self) -> None:
        for cache in self._caches:
            cache.pool.check()

    def _length_of(self, request: Request) -> int:
        """Maximum number of positions that may be written for it."""
        length = len(request.prompt_ids) + request.most_tokens
        return min(length, self._target.spec.context_limit) + self._slack

    def _pages_of(self, request: Request) -> int:
        return num_pages_for(self._length_of(request))
