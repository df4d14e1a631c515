"""The words of a pass that change from step to step: number, positions and slots of rows, and the
pages of slots."""

from typing import NamedTuple

import torch

from dspark_kernels.paged_cache import PAGE

MAX_HEAD_DIM = 512
FEW = 64
WORDS = ("rows", "tokens", "positions", "slots", "visible", "cos", "sin", "cache", "tables")
STRIDES = ("layer_bytes", "value_bytes", "page_bytes", "head_bytes", "table_bytes")


class Place(NamedTuple):
    """int64 [N] each: a row's position, its slot, and the number of the slot's keys it sees."""

    positions: torch.Tensor
    slots: torch.Tensor
    visible: torch.Tensor


class Pages(NamedTuple):
    """Keys and values of all slots, `cached` float32 [layers, 2, pages, kv_heads, PAGE, D], and the
    pages of each in order of position, `tables` int32 [slots, columns]."""

    cached: torch.Tensor
    tables: torch.Tensor

    def of_slot(self, layer: int, slot: int, length: int) -> torch.Tensor:
        """Its keys and values up to a length: [2, kv_heads, length, D]."""
        pages = self.tables[slot, : -(-length // PAGE)].long()
        whole: torch.Tensor = self.cached[layer][:, pages].transpose(1, 2).flatten(2, 3)
        return whole[:, :, :length]

    def of_rows(self, place: Place) -> tuple[torch.Tensor, slice, torch.Tensor]:
        """Where the rows stand in the keys, or the values, of a layer."""
        pages = self.tables[place.slots, place.positions // PAGE].long()
        return pages, slice(None), place.positions % PAGE


def index_of(name: str) -> int:
    return (WORDS + STRIDES).index(name)


def check_tokens(token_ids: torch.Tensor, num_tokens: int) -> None:
    """Raises ValueError if one is not below `num_tokens`."""
    _check("tokens", token_ids, 0, num_tokens - 1)


def token_words(token_ids: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """For operations that only read tokens. Raises ValueError as check_tokens."""
    check_tokens(token_ids, num_tokens)
    return torch.tensor([len(token_ids), token_ids.data_ptr()])


def step_words(
    place: Place,
    rotary: tuple[torch.Tensor, torch.Tensor],
    cache: Pages,
    tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """rotary cos and sin float32 [positions, D]; `tokens` as token_words checked them.

    The tensors must outlive the words. Raises ValueError if a row's position or slot is invalid.
    """
    (num_slots, columns), num_pages = cache.tables.shape, cache.cached.shape[2]
    page, head_dim = cache.cached.shape[4:]
    if head_dim % 32 or head_dim > MAX_HEAD_DIM or page != PAGE:
        raise ValueError(
            f"heads of {head_dim} numbers and pages of {page} keys: multiples of 32 up to "
            f"{MAX_HEAD_DIM}, and {PAGE}, fit"
        )
    capacity = columns * PAGE
    _check("positions", place.positions, 0, min(capacity, len(rotary[0])) - 1)
    _check("slots", place.slots, 0, num_slots - 1)
    _check("visible keys", place.visible, 1, capacity)
    _check("pages", cache.tables, 0, num_pages - 1)
    tensors = (*place, *rotary, *cache)
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError("places, tables and caches have to be contiguous")
    strides = [cache.cached.stride(i) * cache.cached.element_size() for i in range(4)]
    strides.append(cache.tables.stride(0) * cache.tables.element_size())
    first = 0 if tokens is None else tokens.data_ptr()
    words = [len(place.positions), first, *(t.data_ptr() for t in tensors), *strides]
    return torch.tensor(words)


def _check(what: str, values: torch.Tensor, low: int, high: int) -> None:
    """Kernels read memory at these numbers."""
    kind = torch.int32 if what == "pages" else torch.int64
    if values.dtype != kind or not values.is_contiguous():
        raise ValueError(f"{what} are {kind} in one piece, not {values.dtype}")
    if not values.numel():
        return
    if values.numel() <= FEW:  # for so few a list is the quicker way
        numbers = values.flatten().tolist()
        least, most = min(numbers), max(numbers)
    else:
        least, most = (int(each) for each in values.aminmax())
    if not low <= least <= most <= high:
        raise ValueError(f"{what} from {least} to {most}, not {low} to {high}")
