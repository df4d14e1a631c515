"""The words of a pass that change from step to step: number, positions and slots of rows, and the
pages of slots."""

import ctypes
from collections.abc import Sequence
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


class PassRows(NamedTuple):
    """As Place, in lists, and the rows' tokens (none for operations that read none)."""

    tokens: list[int]
    positions: list[int]
    slots: list[int]
    visible: list[int]

    def part(self, rows: slice) -> "PassRows":
        tokens, positions, slots, visible = (each[rows] for each in self)
        return PassRows(tokens, positions, slots, visible)


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


class StepTable:
    """The words of passes of up to `most` rows, in memory that stays, so that a pass writes
    only what it changes."""

    def __init__(self, most: int) -> None:
        first = len(WORDS) + len(STRIDES)
        self._memory = (ctypes.c_int64 * (first + len(PassRows._fields) * most))()
        self.address = ctypes.addressof(self._memory)
        self._columns = [first + most * index for index in range(len(PassRows._fields))]
        self._known: tuple[torch.Tensor, Pages] | None = None
        for name, column in zip(PassRows._fields, self._columns, strict=True):
            self._memory[index_of(name)] = self.address + 8 * column
        self._limits = (0, 0)

    def fill(
        self,
        rows: PassRows,
        rotary: tuple[torch.Tensor, torch.Tensor],
        cache: Pages,
        num_tokens: int = 0,
    ) -> None:
        """As step_words and check_tokens; `rotary` and `cache` are kept. A cache whose tables
        change is another object."""
        if self._known is None or self._known[0] is not rotary[0] or self._known[1] is not cache:
            self._point(rotary, cache)
        capacity, num_slots = self._limits
        _check_numbers("positions", rows.positions, 0, min(capacity, len(rotary[0])) - 1)
        _check_numbers("slots", rows.slots, 0, num_slots - 1)
        _check_numbers("visible keys", rows.visible, 1, capacity)
        if rows.tokens:
            _check_numbers("tokens", rows.tokens, 0, num_tokens - 1)
        self._memory[0] = len(rows.positions)
        for column, values in zip(self._columns, rows, strict=True):
            self._memory[column : column + len(values)] = [*values]

    def _point(self, rotary: tuple[torch.Tensor, torch.Tensor], cache: Pages) -> None:
        nowhere = torch.zeros(0, dtype=torch.int64)
        words = step_words(Place(nowhere, nowhere, nowhere), rotary, cache).tolist()
        for name in ("cos", "sin", "cache", "tables", *STRIDES):
            self._memory[index_of(name)] = words[index_of(name)]
        self._known = (rotary[0], cache)
        self._limits = (cache.tables.shape[1] * PAGE, cache.tables.shape[0])
        self._rotary = rotary


def _check_numbers(what: str, numbers: Sequence[int], low: int, high: int) -> None:
    least, most = min(numbers), max(numbers)
    if not low <= least <= most <= high:
        raise ValueError(f"{what} from {least} to {most}, not {low} to {high}")


def _check(what: str, values: torch.Tensor, low: int, high: int) -> None:
    """Kernels read memory at these numbers."""
    kind = torch.int32 if what == "pages" else torch.int64
    if values.dtype != kind or not values.is_contiguous():
        raise ValueError(f"{what} are {kind} in one piece, not {values.dtype}")
    if not values.numel():
        return
    if values.numel() <= FEW:  # for so few a list is the quicker way
        _check_numbers(what, values.flatten().tolist(), low, high)
    else:
        _check_numbers(what, [int(each) for each in values.aminmax()], low, high)
