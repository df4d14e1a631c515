"""Caches of finished requests, for prompts that begin as they do."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from dspark.config import MOST_KEPT
from dspark.drafters.base import DraftSlot
from dspark.engine.draft_backlog import DraftBacklog
from dspark.targets.base import Slot


@dataclass(frozen=True, slots=True, eq=False)
class CachedText:
    """Token ids as they were decoded, in the slots of target and drafter; the last ones may wait in
    the backlog instead of the drafter's."""

    token_ids: tuple[int, ...]
    slot: Slot
    draft_slot: DraftSlot | None
    backlog: DraftBacklog = field(default_factory=DraftBacklog)

    def covers(self, other: "CachedText") -> bool:
        """Whether nobody needs the other beside this one."""
        size = len(other.token_ids)
        has_drafts = self.draft_slot is not None or other.draft_slot is None
        return has_drafts and self.token_ids[:size] == other.token_ids


class PrefixCache:
    """Texts, the least recently used first. Those that share a beginning share its pages, so that a
    text which leaves frees only what no other has."""

    def __init__(
        self,
        budget: int | None,
        held_bytes: Callable[[Collection[Slot]], int],
        close: Callable[[CachedText], None],
    ) -> None:
        """At most `budget` bytes, or one text; None: as much as there is."""
        self._budget, self._held_bytes, self._close = budget, held_bytes, close
        self._texts: list[CachedText] = []

    def __len__(self) -> int:
        return len(self._texts)

    def texts(self, *, with_drafts: bool) -> list[CachedText]:
        """Those that a request with drafts, or without, may continue."""
        return [text for text in self._texts if text.draft_slot is not None or not with_drafts]

    def touch(self, text: CachedText) -> None:
        self._texts.remove(text)
        self._texts.append(text)

    def take(self, text: CachedText) -> None:
        """It is somebody else's now."""
        self._texts.remove(text)

    def keep(self, text: CachedText) -> None:
        """As the last one used; others leave for it."""
        if self._budget == 0:
            self._close(text)
            return
        for other in [*self._texts]:
            if text.covers(other):
                self._texts.remove(other)
                self._close(other)
        self._texts.append(text)
        while len(self._texts) > MOST_KEPT or (len(self._texts) > 1 and self._is_over_budget()):
            self.drop_oldest()

    def drop_oldest(self) -> bool:
        """False if there is none."""
        if self._texts:
            self._close(self._texts.pop(0))
            return True
        return False

    def _is_over_budget(self) -> bool:
        if self._budget is None:
            return False
        return self._held_bytes([text.slot for text in self._texts]) > self._budget


def shared_prefix(known: Sequence[int], prompt: Sequence[int]) -> int:
    """Number of tokens with which both begin. Slices are compared, since that is quick."""
    low, high = 0, min(len(known), len(prompt))
    while low < high:
        middle = (low + high + 1) // 2
        if known[low:middle] == prompt[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
