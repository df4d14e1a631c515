"""Slots for experts on a card, and the table by which its kernels find them.

The table changes between passes only. A pass that is still under way may read a slot whose expert
has left the table meanwhile, so a slot rests for a pass before it is written to.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from dspark.checkpoints.deepseek_v4_target import Expert
from dspark.models.expert_store import Copy, ExpertStore, Policy, expert_tensors, padded
from dspark_kernels.deepseek_v4.fp4_experts import ExpertBank

NOWHERE = -1
RESERVE = 3 * 10**9  # bytes of a card for caches, passes, kernels and other programs
STREAM_SHARE = 0.5  # of what is left: more than that is not given to the buffers of prompts
LAYERS_THERE = 2  # in these buffers


class CardPlan(NamedTuple):
    slots: int
    streams: bool


def card_plan(free: int, kept: int, layers: int, count: int, num_bytes: int) -> CardPlan | None:
    """Of a card with so many free bytes, beside `kept` bytes that every pass reads: how many of
    `layers` times `count` experts of `num_bytes` get a slot. None if not even the rest fits."""
    left = free - kept - RESERVE
    if left < num_bytes:
        return None
    buffers = LAYERS_THERE * count * num_bytes
    streams = buffers <= STREAM_SHARE * left
    slots = (left - streams * buffers) // num_bytes
    return CardPlan(min(slots, layers * count), streams)


class CardExpertStore(ExpertStore):
    """`table` int32 [L, E]: the slot of each expert, NOWHERE for those that the host computes."""

    is_on_card = True

    @torch.inference_mode(False)
    def __init__(
        self,
        layers: Sequence[Sequence[Expert]],
        num_slots: int,
        device: torch.device,
        policy: Policy = "most used",
        copy: Copy | None = None,
        path: Path | None = None,
    ) -> None:
        super().__init__(layers, num_slots, policy, copy, path, device)
        self.device = device
        size = (len(layers), len(layers[0]))
        self.table = torch.full(size, NOWHERE, dtype=torch.int32, device=device)
        self._resting: list[int] = []
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.bank = expert_bank(self._memory, layers[0][0])

    def between_passes(self) -> None:
        """As ExpertStore.between_passes; what was vacated before the last pass is free again."""
        self._free += self._resting
        self._resting = []
        super().between_passes()

    def _work(self) -> None:
        """As ExpertStore._work, on a stream of its own: a pass may wait for the host meanwhile."""
        with torch.cuda.stream(self._stream):  # None: as it is
            super()._work()

    def _put(self, key: int, slot: int | None) -> None:
        self.table.view(-1)[key] = NOWHERE if slot is None else slot

    def _vacate(self, slot: int) -> None:
        self._resting.append(slot)

    def _num_resting(self) -> int:
        return len(self._resting)


def expert_bank(memory: torch.Tensor, like: Expert) -> ExpertBank:
    """memory uint8 [slots, bytes], each slot with the parts of an expert one after the other."""
    parts, begin = [], 0
    for tensor in expert_tensors(like):
        parts.append(begin)
        begin += padded(tensor.nbytes)
    inner, hidden = like.gate.shape
    first, second, third, fourth, fifth, sixth = parts
    return ExpertBank(memory, (first, second, third, fourth, fifth, sixth), hidden, inner)
