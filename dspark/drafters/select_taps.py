"""A drafter on a target that taps more layers than it reads, for other heads."""

from collections.abc import Sequence

import torch

from dspark.drafters.base import Chooser, DeviceDrafter, Drafter, DraftSlot, Proposals


def with_own_taps(drafter: Drafter, tap_layers: Sequence[int]) -> Drafter:
    """The drafter for a target that taps `tap_layers`, its own among them."""
    if tuple(tap_layers) == drafter.target_layer_ids:
        return drafter
    if isinstance(drafter, DeviceDrafter):
        drafter.choose_taps(tap_layers)
        return drafter
    return _TapChoice(drafter, tap_layers)


class _TapChoice:
    """Passes the drafter its own taps, and everything else unchanged."""

    def __init__(self, drafter: Drafter, tap_layers: Sequence[int]) -> None:
        self._drafter = drafter
        self._num_taps = len(tap_layers)
        self._places = [list(tap_layers).index(layer) for layer in drafter.target_layer_ids]
        self.block_size = drafter.block_size
        self.target_layer_ids = drafter.target_layer_ids
        self.num_weights = drafter.num_weights

    def open(self) -> DraftSlot:
        return self._drafter.open()

    def close(self, slot: DraftSlot) -> None:
        self._drafter.close(slot)

    def extend(
        self,
        slots: Sequence[DraftSlot],
        token_ids: Sequence[torch.Tensor],
        taps: Sequence[torch.Tensor],
    ) -> None:
        self._drafter.extend(slots, token_ids, [self._own(tap) for tap in taps])

    def propose(
        self, slots: Sequence[DraftSlot], anchors: torch.Tensor, chooser: Chooser
    ) -> Proposals:
        return self._drafter.propose(slots, anchors, chooser)

    def fork(self, slot: DraftSlot, length: int) -> DraftSlot:
        return self._drafter.fork(slot, length)

    def truncate(self, slot: DraftSlot, length: int) -> None:
        self._drafter.truncate(slot, length)

    def _own(self, taps: torch.Tensor) -> torch.Tensor:
        """[n, T * H] of the target -> [n, own T * H]."""
        selected: torch.Tensor = taps.unflatten(1, (self._num_taps, -1))[:, self._places].flatten(1)
        return selected
