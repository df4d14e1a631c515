"""Compressors of V4's layers, as close_windows and keep_rows of cpu/deepseek_v4: a window of raw
rows becomes an entry when its last row comes."""

from typing import NamedTuple

import torch

from dspark_kernels.backend import jit, next_power_of_2, tl
from dspark_kernels.builds import KernelBuild
from dspark_kernels.deepseek_v4.exact_math import UNFUSED, exp, inverse_root
from dspark_kernels.deepseek_v4.norm_turn import squares_of, turned_row
from dspark_kernels.deepseek_v4.places import (
    END,
    FLOAT,
    RINGS,
    ROW_WORDS,
    entry_at,
    floats_at,
    row_at,
)

BLOCK = 1024


class Ring(NamedTuple):
    """`start`: numbers of a request's rings before it."""

    start: int
    cells: int
    width: int


class Entries(NamedTuple):
    """pages [pages, ...] float32, of which a compressor's entries [width] begin `start` numbers
    behind a page's begin, one for `ratio` positions."""

    pages: torch.Tensor
    start: int
    ratio: int
    width: int

    @property
    def page_stride(self) -> int:
        return self.pages.stride(0)


def add_by_position(gates: torch.Tensor, rows: torch.Tensor, table: torch.Tensor) -> None:
    """gates [N, C], rows may be further apart: plus the row of table [ratio, C] at position modulo
    ratio; in place."""
    ratio, width = table.shape
    add_by_position_kernel[(len(gates), -(-width // BLOCK))](
        gates, rows, table, gates.stride(0), RATIO=ratio, WIDTH=width, BLOCK=BLOCK, **UNFUSED
    )


def close_windows(
    raw: torch.Tensor,
    rows: torch.Tensor,
    ring: Ring,
    entries: Entries,
    weight: torch.Tensor,
    eps: float,
    turns: tuple[torch.Tensor, torch.Tensor],
    halves: int,
) -> None:
    """raw [N, 2 * halves * width]: values, then gates. Of overlapping windows (two halves) the
    first half is of the window before."""
    width, (cos, sin) = entries.width, turns
    close_windows_kernel[(len(rows),)](
        raw,
        rows,
        weight,
        entries.pages,
        cos,
        sin,
        eps,
        raw.stride(0),
        ring.start,
        ring.cells,
        entries.page_stride,
        entries.start,
        RATIO=entries.ratio,
        HALVES=halves,
        WIDTH=width,
        PAIRS=cos.shape[1],
        BLOCK=next_power_of_2(width),
        PAIR_BLOCK=next_power_of_2(cos.shape[1]),
        num_warps=4,
        **UNFUSED,
    )


def keep_rows(x: torch.Tensor, rows: torch.Tensor, ring: Ring) -> None:
    """x [N, width], rows may be further apart: each into its request's ring, unless a later row of
    the pass takes its cell."""
    keep_rows_kernel[(len(rows), -(-ring.width // BLOCK))](
        x, rows, x.stride(0), ring.start, ring.cells, WIDTH=ring.width, BLOCK=BLOCK, **UNFUSED
    )


@jit
def add_by_position_kernel(
    gates: tl.tensor,  # [N, WIDTH]
    rows: tl.tensor,  # [N, words]
    table: tl.tensor,  # [RATIO, WIDTH]
    stride: tl.tensor,
    RATIO: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    place = tl.load(rows + row * ROW_WORDS) % RATIO
    target = gates + row * stride + column
    added = tl.load(table + place * WIDTH + column, mask=inside, other=0.0)
    tl.store(target, tl.load(target, mask=inside, other=0.0) + added, mask=inside)


@jit
def close_windows_kernel(
    raw: tl.tensor,  # [N, 2 * HALVES * WIDTH]
    rows: tl.tensor,  # [N, words]
    weight: tl.tensor,  # [WIDTH]
    half: tl.tensor,  # pages
    cos: tl.tensor,  # [positions, PAIRS]
    sin: tl.tensor,
    eps: tl.tensor,
    raw_stride: tl.tensor,
    ring_at: tl.tensor,
    cells: tl.tensor,
    page_stride: tl.tensor,
    before: tl.tensor,
    RATIO: tl.constexpr,
    HALVES: tl.constexpr,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIR_BLOCK: tl.constexpr,
) -> None:
    """A row, if it closes a window: softmax of the gates of each channel, slots in order."""
    record = rows + tl.program_id(0).to(tl.int64) * ROW_WORDS
    position = tl.load(record)
    if (position + 1) % RATIO == 0:
        window = position // RATIO
        begins = window * RATIO
        overlapped = tl.where(window > 0, (HALVES - 1) * RATIO, 0)
        oldest, slots = begins - overlapped, overlapped + RATIO
        column = tl.arange(0, BLOCK)
        inside = column < WIDTH
        GATES: tl.constexpr = HALVES * WIDTH
        highest = tl.full((BLOCK,), float("-inf"), tl.float32)
        for slot in range(slots):
            place = row_at(oldest + slot, record, raw, raw_stride, ring_at, cells, 2 * GATES)
            own = tl.where(slot >= overlapped, (HALVES - 1) * WIDTH, 0)
            gates = tl.load(floats_at(place) + own + GATES + column, mask=inside, other=0.0)
            highest = tl.where(gates > highest, gates, highest)
        share = tl.zeros((BLOCK,), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for slot in range(slots):
            place = row_at(oldest + slot, record, raw, raw_stride, ring_at, cells, 2 * GATES)
            own = tl.where(slot >= overlapped, (HALVES - 1) * WIDTH, 0)
            values_at = floats_at(place) + own + column
            power = exp(tl.load(values_at + GATES, mask=inside, other=0.0) - highest)
            share += power
            total = tl.fma(power, tl.load(values_at, mask=inside, other=0.0), total)
        target = floats_at(
            entry_at(window, window >= 0, record, half, page_stride, before, RATIO, WIDTH)
        )
        tl.store(target + column, tl.div_rn(total, share), mask=inside)
        tl.debug_barrier()  # other threads read what was stored
        factor = tl.sum(inverse_root(squares_of(target, WIDTH), WIDTH, eps), axis=0)
        tl.debug_barrier()
        turned_row(
            target, target, weight, begins, cos, sin, factor, 1.0,
            WIDTH, PAIRS, BLOCK, PAIR_BLOCK, True,
        )  # fmt: skip


@jit
def keep_rows_kernel(
    x: tl.tensor,  # [N, WIDTH]
    rows: tl.tensor,  # [N, words]
    stride: tl.tensor,
    ring_at: tl.tensor,
    cells: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    record = rows + row * ROW_WORDS
    position = tl.load(record)
    if position >= tl.load(record + END) - cells:
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < WIDTH
        place = tl.load(record + RINGS) + (ring_at + position % cells * WIDTH) * FLOAT
        values = tl.load(x + row * stride + column, mask=inside, other=0.0)
        tl.store(floats_at(place) + column, values, mask=inside)


def builds() -> list[KernelBuild]:
    kernels = []
    words = ("raw_stride", "ring_at", "cells", "page_stride", "before")
    closing = {"raw": "*fp32", "rows": "*i64", "weight": "*fp32", "half": "*fp32", "cos": "*fp32"}
    closing |= {"sin": "*fp32", "eps": "fp32"} | dict.fromkeys(words, "i32")
    for name, ratio, halves, width in (
        ("CSA", 4, 2, 512),
        ("HCA", 128, 1, 512),
        ("index", 4, 2, 128),
    ):
        sizes = {"RATIO": ratio, "HALVES": halves, "WIDTH": width, "PAIRS": 32}
        sizes |= {"BLOCK": width, "PAIR_BLOCK": 32}
        kernels.append(
            KernelBuild(f"v4 close {name}", close_windows_kernel, closing, sizes, fuses=False)
        )
    by_position = {"gates": "*fp32", "rows": "*i64", "table": "*fp32", "stride": "i32"}
    sizes = {"RATIO": 128, "WIDTH": 512, "BLOCK": BLOCK}
    kernels.append(
        KernelBuild("v4 add by position", add_by_position_kernel, by_position, sizes, fuses=False)
    )
    keeping = {"x": "*fp32", "rows": "*i64"} | dict.fromkeys(("stride", "ring_at", "cells"), "i32")
    sizes = {"WIDTH": 2048, "BLOCK": BLOCK}
    kernels.append(KernelBuild("v4 keep rows", keep_rows_kernel, keeping, sizes, fuses=False))
    return kernels
