"""N-gram lookup, a drafter without a head: drafts what followed the same n-gram before."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

import torch

from dspark.drafters.base import Chooser, DraftSlot, Proposals

LONGEST_RUN = 4
BLOCK_SIZE = 5


@dataclass(slots=True)
class _History:
    """A request's tokens, and for each n-gram the place after its last occurrence."""

    token_ids: list[int] = field(default_factory=list)
    followers: dict[tuple[int, ...], int] = field(default_factory=dict)

    def append(self, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            self.token_ids.append(token_id)
            end = len(self.token_ids)
            for length in range(1, min(LONGEST_RUN, end) + 1):
                self.followers[tuple(self.token_ids[end - length :])] = end

    def continuation(self, anchor: int) -> list[int]:
        """A block after the anchor; empty if the n-gram is new. A copy may overlap itself, as in a
        text that repeats one word."""
        last = (*self.token_ids[1 - LONGEST_RUN :], anchor)
        runs = (last[start:] for start in range(len(last)))
        begin = next((self.followers[run] for run in runs if run in self.followers), None)
        if begin is None:
            return []
        following = [*self.token_ids[begin : begin + BLOCK_SIZE], anchor]
        return list(islice(cycle(following), BLOCK_SIZE))


class LookupDrafter:
    """Reads no taps, has no weights and no probabilities: its drafts are certain."""

    block_size = BLOCK_SIZE
    target_layer_ids: tuple[int, ...] = ()
    num_weights = 0

    def open(self) -> DraftSlot:
        return _History()

    def close(self, slot: DraftSlot) -> None:
        pass

    def extend(
        self,
        slots: Sequence[DraftSlot],
        token_ids: Sequence[torch.Tensor],
        taps: Sequence[torch.Tensor],
    ) -> None:
        """As Drafter.extend."""
        for history, ids in zip(slots, token_ids, strict=True):
            history.append(ids.tolist())

    def propose(
        self, slots: Sequence[DraftSlot], anchors: torch.Tensor, chooser: Chooser
    ) -> Proposals:
        """As Drafter.propose."""
        drafts = [
            history.continuation(anchor)
            for history, anchor in zip(slots, anchors.tolist(), strict=True)
        ]
        padded = [draft + [0] * (BLOCK_SIZE - len(draft)) for draft in drafts]
        return Proposals(
            token_ids=torch.tensor(padded, device=anchors.device),
            probs=[None] * len(slots),
            confidences=None,
            lengths=[len(draft) for draft in drafts],
        )

    def fork(self, slot: DraftSlot, length: int) -> DraftSlot:
        fresh = _History()
        fresh.append(slot.token_ids[:length])
        return fresh

    def truncate(self, slot: DraftSlot, length: int) -> None:
        remaining = slot.token_ids[:length]
        slot.token_ids, slot.followers = [], {}
        slot.append(remaining)
