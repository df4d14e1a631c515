"""The words of a pass that change from step to step: number, positions and slots of rows."""

from typing import NamedTuple

import torch

MAX_HEAD_DIM = 512
WORDS = ("rows", "tokens", "positions", "slots", "visible", "cos", "sin", "cache")
STRIDES = ("layer_bytes", "value_bytes", "slot_bytes", "head_bytes")


class Place(NamedTuple):
    """int64 [N] each: a row's position, its slot, and the number of the slot's keys it sees."""

    positions: torch.Tensor
    slots: torch.Tensor
    visible: torch.Tensor


def index_of(name: str) -> int:
    return (WORDS + STRIDES).index(name)


def token_words(token_ids: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """For operations that only read tokens. Raises ValueError if one is not below `num_tokens`."""
    _check("tokens", token_ids, 0, num_tokens - 1)
    return torch.tensor([len(token_ids), token_ids.data_ptr()])


def step_words(
    place: Place,
    rotary: tuple[torch.Tensor, torch.Tensor],
    cache: torch.Tensor,
    tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """rotary cos and sin float32 [positions, D]; cache float32 [layers, 2, slots, kv_heads, L, D];
    `tokens` as token_words checked them.

    The tensors must outlive the words. Raises ValueError if a row's position or slot is invalid.
    """
    num_slots, capacity, head_dim = cache.shape[2], cache.shape[4], cache.shape[5]
    if head_dim % 32 or head_dim > MAX_HEAD_DIM or capacity % 16:
        raise ValueError(
            f"heads of {head_dim} numbers and {capacity} keys: multiples of 32 up to "
            f"{MAX_HEAD_DIM}, and of 16, fit"
        )
    _check("positions", place.positions, 0, min(capacity, len(rotary[0])) - 1)
    _check("slots", place.slots, 0, num_slots - 1)
    _check("visible keys", place.visible, 1, capacity)
    tensors = (*place, *rotary, cache)
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError("places, tables and caches have to be contiguous")
    strides = (cache.stride(i) * cache.element_size() for i in range(4))
    first = 0 if tokens is None else tokens.data_ptr()
    words = [len(place.positions), first, *(t.data_ptr() for t in tensors), *strides]
    return torch.tensor(words)


def _check(what: str, values: torch.Tensor, low: int, high: int) -> None:
    """Kernels read memory at these numbers."""
    if values.dtype != torch.int64 or not values.is_contiguous():
        raise ValueError(f"{what} are int64 in one piece, not {values.dtype}")
    numbers = values.tolist()
    if numbers and not low <= min(numbers) <= max(numbers) <= high:
        raise ValueError(f"{what} from {min(numbers)} to {max(numbers)}, not {low} to {high}")
