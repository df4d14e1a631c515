"""The words of a pass that change from step to step: how many rows, where they belong."""

from typing import NamedTuple

import torch

WORDS = ("rows", "positions", "slots", "visible", "cos", "sin", "cache")
STRIDES = ("layer_bytes", "value_bytes", "slot_bytes", "head_bytes")


class Place(NamedTuple):
    """int64 [N] each: a row's position, its slot, and how many keys of the slot it sees."""

    positions: torch.Tensor
    slots: torch.Tensor
    visible: torch.Tensor


def index_of(name: str) -> int:
    return (WORDS + STRIDES).index(name)


def step_words(
    place: Place, rotary: tuple[torch.Tensor, torch.Tensor], cache: torch.Tensor
) -> torch.Tensor:
    """rotary cos and sin float32 [positions, D]; cache float32 [layers, 2, slots, kv_heads, L, D].

    The tensors must outlive the words. Raises ValueError where a row has no place.
    """
    num_slots, capacity, head_dim = cache.shape[2], cache.shape[4], cache.shape[5]
    if head_dim % 32 or capacity % 16:
        raise ValueError(f"heads of {head_dim} numbers, {capacity} keys: multiples of 32, 16 fit")
    longest = min(capacity, len(rotary[0]))
    least, most = (0, 0, 1), (longest - 1, num_slots - 1, capacity)
    for values, low, high in zip(place, least, most, strict=True):
        if values.numel() and not low <= int(values.min()) <= int(values.max()) <= high:
            raise ValueError(f"places of rows {values.tolist()} are not {low} to {high}")
    tensors = (*place, *rotary, cache)
    strides = (cache.stride(i) * cache.element_size() for i in range(4))
    words = [len(place.positions), *(t.data_ptr() for t in tensors), *strides]
    return torch.tensor(words, dtype=torch.int64)
