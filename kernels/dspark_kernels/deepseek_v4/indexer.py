"""Which compressed entries a row attends to, as index_scores and index_choose of cpu/deepseek_v4:
scores in a written order, then the best of them, of equal ones the first, in ascending order."""

import torch

from dspark_kernels.backend import jit, tl
from dspark_kernels.builds import KernelBuild
from dspark_kernels.deepseek_v4.compressor import Entries
from dspark_kernels.deepseek_v4.exact_math import LANES, UNFUSED, fma, tree_sum
from dspark_kernels.deepseek_v4.places import ROW_WORDS, entry_at, floats_at

ENTRIES = 64  # of a program that scores
BLOCK = 1024  # entries that are counted at once


def index_scores(
    queries: torch.Tensor,
    weights: torch.Tensor,
    rows: torch.Tensor,
    keys: Entries,
    scale: float,
    top: int,
    out: torch.Tensor,
) -> None:
    """queries [N, heads * D], weights [N, heads], out [N, most entries]: of the entries that a row
    sees, if they are more than `top`."""
    num_rows, heads = weights.shape
    index_scores_kernel[(num_rows, -(-out.shape[1] // ENTRIES))](
        queries,
        weights,
        rows,
        keys.pages,
        out,
        scale,
        keys.page_stride,
        keys.start,
        out.stride(0),
        HEADS=heads,
        WIDTH=keys.width,
        RATIO=keys.ratio,
        TOP=top,
        ENTRIES=ENTRIES,
        num_warps=4,
        **UNFUSED,
    )


def index_choose(
    scores: torch.Tensor, rows: torch.Tensor, ratio: int, chosen: torch.Tensor
) -> None:
    """scores [N, most entries] -> chosen int64 [N, top], of rows that see more than `top`."""
    index_choose_kernel[(len(rows),)](
        scores, rows, chosen, scores.stride(0), RATIO=ratio, TOP=chosen.shape[1], BLOCK=BLOCK,
        num_warps=4, **UNFUSED,
    )  # fmt: skip


@jit
def index_scores_kernel(
    queries: tl.tensor,  # [N, HEADS * WIDTH]
    weights: tl.tensor,  # [N, HEADS]
    rows: tl.tensor,  # [N, words]
    half: tl.tensor,  # pages
    out: tl.tensor,  # [N, most entries]
    scale: tl.tensor,
    page_stride: tl.tensor,
    before: tl.tensor,
    out_stride: tl.tensor,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    RATIO: tl.constexpr,
    TOP: tl.constexpr,
    ENTRIES: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    record = rows + row * ROW_WORDS
    visible = (tl.load(record) + 1) // RATIO
    first = tl.program_id(1) * ENTRIES
    if (visible > TOP) & (first < visible):
        entry = first + tl.arange(0, ENTRIES)
        inside = entry < visible
        lane = tl.arange(0, LANES)
        place = entry_at(entry, inside, record, half, page_stride, before, RATIO, WIDTH)
        keys = floats_at(place)[:, None] + lane[None, :]
        total = tl.zeros((ENTRIES,), tl.float32)
        for head in range(HEADS):
            query = queries + (row * HEADS + head) * WIDTH + lane
            product = tl.zeros((ENTRIES, LANES), tl.float32)
            for chunk in tl.static_range(WIDTH // LANES):
                key = tl.load(keys + chunk * LANES, mask=inside[:, None], other=0.0)
                product = fma(tl.load(query + chunk * LANES)[None, :], key, product)
            dot = tree_sum(product, ENTRIES)
            dot = tl.where(dot > 0.0, dot, 0.0) * scale
            total = total + dot * tl.load(weights + row * HEADS + head)
        tl.store(out + row * out_stride + entry, total, mask=inside)


@jit
def index_choose_kernel(
    scores: tl.tensor,  # [N, most entries]
    rows: tl.tensor,  # [N, words]
    chosen: tl.tensor,  # [N, TOP]
    stride: tl.tensor,
    RATIO: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A row: the highest rank that TOP entries reach is found bit by bit."""
    row = tl.program_id(0).to(tl.int64)
    visible = (tl.load(rows + row * ROW_WORDS) + 1) // RATIO
    if visible > TOP:
        own = scores + row * stride
        low = tl.full((), -(2**31), tl.int64)
        high = tl.full((), 2**31, tl.int64)
        for _ in range(32):
            middle = (low + high) >> 1
            is_enough = _count(own, visible, middle, BLOCK) >= TOP
            low, high = tl.where(is_enough, middle, low), tl.where(is_enough, high, middle)
        left = TOP - _count(own, visible, low + 1, BLOCK)
        taken = tl.zeros_like(left)
        for begin in range(0, visible, BLOCK):
            entry = begin + tl.arange(0, BLOCK)
            rank = _rank(own, entry, visible)
            is_equal = (rank == low).to(tl.int32)
            number = tl.cumsum(is_equal, axis=0)
            is_taken = ((rank > low) | ((is_equal > 0) & (number <= left))).to(tl.int32)
            place = taken + tl.cumsum(is_taken, axis=0) - 1
            target = chosen + row * TOP + place
            tl.store(target, entry.to(tl.int64), mask=is_taken > 0)
            taken += tl.sum(is_taken, axis=0)
            left -= tl.sum(is_equal, axis=0)


@jit
def _rank(scores: tl.tensor, entry: tl.tensor, visible: tl.tensor) -> tl.tensor:
    """A whole number that is ordered as the scores are; below all others where there is none."""
    inside = entry < visible
    bits = tl.load(scores + entry, mask=inside, other=0.0).to(tl.int32, bitcast=True)
    rank = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    return tl.where(inside, rank, -(2**32))


@jit
def _count(
    scores: tl.tensor, visible: tl.tensor, least: tl.tensor, BLOCK: tl.constexpr
) -> tl.tensor:
    """Entries whose rank is `least` or more."""
    found = tl.zeros((BLOCK,), tl.int32)
    for begin in range(0, visible, BLOCK):
        found += (_rank(scores, begin + tl.arange(0, BLOCK), visible) >= least).to(tl.int32)
    return tl.sum(found, axis=0)


def builds() -> list[KernelBuild]:
    scoring = dict.fromkeys(("queries", "weights", "half", "out"), "*fp32") | {"rows": "*i64"}
    scoring |= {"scale": "fp32"} | dict.fromkeys(("page_stride", "before", "out_stride"), "i32")
    sizes = {"HEADS": 64, "WIDTH": 128, "RATIO": 4, "TOP": 512, "ENTRIES": ENTRIES}
    choosing = {"scores": "*fp32", "rows": "*i64", "chosen": "*i64", "stride": "i32"}
    of_choice = {"RATIO": 4, "TOP": 512, "BLOCK": BLOCK}
    return [
        KernelBuild("v4 index scores", index_scores_kernel, scoring, sizes, fuses=False),
        KernelBuild("v4 index choose", index_choose_kernel, choosing, of_choice, fuses=False),
    ]
