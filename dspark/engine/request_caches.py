"""Caches of requests: opened, reused by a prompt that continues the last one, released."""

from collections.abc import Sequence
from dataclasses import dataclass

from dspark.drafters.base import Drafter, DraftSlot
from dspark.engine.request import ActiveRequest
from dspark.engine.rounds.host import RoundRunner
from dspark.targets.base import Slot, Target


@dataclass(frozen=True, slots=True)
class _Warm:
    """The caches of the last finished request, for a prompt that continues it."""

    token_ids: tuple[int, ...]
    slot: Slot
    draft_slot: DraftSlot | None


class RequestCaches:
    """Every slot that an engine holds is opened and closed here, by name."""

    def __init__(self, target: Target, drafter: Drafter | None, rounds: RoundRunner) -> None:
        self._target, self._drafter, self._rounds = target, drafter, rounds
        self._warm: _Warm | None = None
        self._num_open = 0

    def has_room(self, active: ActiveRequest, under_way: int) -> bool:
        """Whether it can start next to the running requests; warm caches are released if needed."""
        if under_way >= self._rounds.capacity:
            return False
        if not under_way:
            self._rounds.forget()
        if not self._rounds.has_room(active.request):
            self.drop_warm()
        return self._rounds.has_room(active.request) or not under_way

    def open(self, active: ActiveRequest) -> None:
        """Fresh caches, or those of the last request as far as this prompt continues it."""
        drafter = None if active.request.plain else self._drafter
        if not self._take_over_warm(active, drafter):
            self.drop_warm()
            active.slot = self._target.open()
            self._num_open += 1
            active.is_open = True
            active.draft_slot = drafter.open() if drafter is not None else None
        self._rounds.reserve(active)

    def keep(self, active: ActiveRequest) -> None:
        """Keep these for the next prompt, instead of those of an earlier request."""
        self.drop_warm()
        tokens = (*active.request.prompt_ids, *active.token_ids)
        committed = tokens[: self._target.length(active.slot)]
        self._warm = _Warm(committed, active.slot, active.draft_slot)
        active.is_open = False

    def close(self, active: ActiveRequest) -> None:
        if active.is_open:
            self._close(active.slot, active.draft_slot)
            active.is_open = False

    def drop_warm(self) -> None:
        if self._warm is not None:
            warm, self._warm = self._warm, None
            self._close(warm.slot, warm.draft_slot)

    def check_idle(self) -> None:
        """Checks, while idle, that only the warm slot is open and no page leaked."""
        assert self._num_open == (self._warm is not None), f"{self._num_open} slots are open"
        self._rounds.check_idle()

    def _take_over_warm(self, active: ActiveRequest, drafter: Drafter | None) -> bool:
        warm, prompt = self._warm, active.request.prompt_ids
        if warm is None or (warm.draft_slot is not None) != (drafter is not None):
            return False
        shared = _shared_prefix(warm.token_ids, prompt)
        if not shared or not self._target.truncate(warm.slot, shared, len(prompt)):
            return False
        if drafter is not None:
            drafter.truncate(warm.draft_slot, shared)
        self._warm = None
        active.slot, active.draft_slot, active.is_open = warm.slot, warm.draft_slot, True
        active.num_cached = shared
        return True

    def _close(self, slot: Slot, draft_slot: DraftSlot | None) -> None:
        self._num_open -= 1
        self._target.close(slot)
        if self._drafter is not None and draft_slot is not None:
            self._drafter.close(draft_slot)


def _shared_prefix(known: Sequence[int], prompt: Sequence[int]) -> int:
    """Number of tokens that need no pass; the prompt's last one always does, for its logits."""
    shared = 0
    for a, b in zip(known, prompt[:-1], strict=False):
        if a != b:
            break
        shared += 1
    return shared
