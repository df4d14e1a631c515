"""Caches of requests: opened, with what others have of their prompt; kept; released."""

from weakref import WeakKeyDictionary, WeakSet

from dspark.config import PREFIX_CACHE_BYTES
from dspark.drafters.base import Drafter
from dspark.engine.draft_backlog import DraftBacklog, catch_up
from dspark.engine.prefix_cache import CachedText, PrefixCache, shared_prefix
from dspark.engine.request import ActiveRequest
from dspark.engine.rounds.round_runner import RoundRunner
from dspark.errors import MemoryFullError
from dspark.kvcache.page_pool import PagedPool
from dspark.targets.base import Target

LEAST_SHARED = 16  # tokens; a shorter beginning is not worth a copy of its last page

_users: WeakKeyDictionary[PagedPool, WeakSet["RequestCaches"]] = WeakKeyDictionary()


class RequestCaches:
    """Every slot that an engine holds is opened and closed here."""

    def __init__(
        self, target: Target, drafter: Drafter | None, rounds: RoundRunner, budget: int | None
    ) -> None:
        """`budget` in bytes is for the caches of finished requests, as in EngineConfig."""
        self._target, self._drafter, self._room = target, drafter, rounds.room
        if budget is None and not self._room.is_fixed:
            budget = PREFIX_CACHE_BYTES
        self._kept = PrefixCache(budget, target.held_bytes, self._close_text)
        self._open: dict[int, ActiveRequest] = {}
        self._num_open = 0
        for pool in self._room.pools:
            _users.setdefault(pool, WeakSet()).add(self)

    def open(self, active: ActiveRequest) -> bool:
        """Caches with what others have of its tokens, and room for the rest; False if it has to
        wait for others. Raises MemoryFullError if there are none."""
        beside = self._open.values()
        if self._room.fits(len(active.known), beside):
            while not self._room.has_free_slot and self._drop_one():
                pass
            self._open_slots(active)
            self._open[active.request_id] = active
            if self.reserve(active):
                return True
            self.close(active)
        if not beside:
            raise MemoryFullError(
                f"{len(active.known)} tokens do not fit on {self._target.device}",
                "Ask for fewer tokens, or shorten the prompt.",
            )
        return False

    def reserve(self, active: ActiveRequest) -> bool:
        """Room for its next round; finished requests make way."""
        while not self._room.reserve(active, len(active.known)):
            if not self._drop_one():
                return False
        return True

    def newest(self) -> ActiveRequest:
        """Of the open ones."""
        return self._open[max(self._open)]

    @property
    def num_open(self) -> int:
        return len(self._open)

    def keep(self, active: ActiveRequest) -> None:
        """For prompts that begin like its text."""
        del self._open[active.request_id]
        active.is_open = False
        tokens = (*active.request.prompt_ids, *active.token_ids)
        committed = tokens[: self._target.length(active.slot)]
        text = CachedText(committed, active.slot, active.draft_slot, active.backlog)
        active.backlog = DraftBacklog()
        self._kept.keep(text)

    def close(self, active: ActiveRequest) -> None:
        active.backlog.clear()
        if active.is_open:
            del self._open[active.request_id]
            active.is_open = False
            self._close_text(CachedText((), active.slot, active.draft_slot))
        active.num_cached = 0

    def drop_kept(self) -> None:
        while self._kept.drop_oldest():
            pass

    def check_idle(self) -> None:
        """Checks, while idle, that only slots of finished requests are open and no page leaked."""
        assert not self._open and self._num_open == len(self._kept), f"{self._num_open} are open"
        self._room.check_idle()

    def _open_slots(self, active: ActiveRequest) -> None:
        drafter = None if active.request.plain else self._drafter
        if not self._begin_shared(active, drafter):
            active.slot = self._target.open()
            active.draft_slot = drafter.open() if drafter is not None else None
            active.num_cached = 0
        active.is_open = True
        self._num_open += 1

    def _begin_shared(self, active: ActiveRequest, drafter: Drafter | None) -> bool:
        """With the longest beginning that another text shares."""
        tokens = active.known[:-1]  # the last one is run, for its logits
        kept = self._kept.texts(with_drafts=drafter is not None)
        texts = [*kept, *self._running(with_drafts=drafter is not None)]
        lengths = [shared_prefix(text.token_ids, tokens) for text in texts]
        length = max(lengths, default=0)
        if not length:
            return False
        text = texts[lengths.index(length)]
        if length == len(text.token_ids) and text in kept:
            is_shared = self._take_over(active, text, length, drafter)
        else:
            is_shared = length >= LEAST_SHARED and (
                self._fork(active, text, length, drafter)
                or (text in kept and self._take_over(active, text, length, drafter))
            )
        if is_shared:
            active.num_cached = length
            if not active.preemptions:
                active.num_reused = length
        return is_shared

    def _running(self, *, with_drafts: bool) -> list[CachedText]:
        """What of their prompts is in the caches of requests that are under way."""
        return [
            CachedText(
                active.known[: active.num_cached], active.slot, active.draft_slot, active.backlog
            )
            for active in self._open.values()
            if active.draft_slot is not None or not with_drafts
        ]

    def _fork(
        self, active: ActiveRequest, text: CachedText, length: int, drafter: Drafter | None
    ) -> bool:
        slot = self._target.fork(text.slot, length)
        if slot is None:
            return False
        active.slot, active.draft_slot = slot, None
        if drafter is not None:
            catch_up(drafter, [text.draft_slot], [text.backlog])
            active.draft_slot = drafter.fork(text.draft_slot, length)
        if text in self._kept.texts(with_drafts=False):
            self._kept.touch(text)
        return True

    def _take_over(
        self, active: ActiveRequest, text: CachedText, length: int, drafter: Drafter | None
    ) -> bool:
        if not self._target.truncate(text.slot, length, len(active.known)):
            return False
        self._kept.take(text)
        self._num_open -= 1
        active.slot, active.draft_slot = text.slot, text.draft_slot
        if drafter is not None:
            catch_up(drafter, [text.draft_slot], [text.backlog])
            drafter.truncate(text.draft_slot, length)
        elif self._drafter is not None and text.draft_slot is not None:
            self._drafter.close(text.draft_slot)
            text.backlog.clear()
            active.draft_slot = None
        return True

    def _drop_one(self) -> bool:
        """The text that was used longest ago, of this engine or another on the same pages."""
        if self._kept.drop_oldest():
            return True
        others = (other for pool in self._room.pools for other in _users[pool])
        return any(other._kept.drop_oldest() for other in others)

    def _close_text(self, text: CachedText) -> None:
        self._num_open -= 1
        text.backlog.clear()
        self._target.close(text.slot)
        if self._drafter is not None and text.draft_slot is not None:
            self._drafter.close(text.draft_slot)
