"""Attention over one key of all heads that is also the value, as latent_attend of cpu/deepseek_v4:
first the window, then compressed entries, softmax over blocks of 64 keys beginning with the sink.

A program has a few heads of a row. Scores and values are summed key by key in the CPU's order, not
by tensor cores: a row sees some hundred keys, so latency decides and not arithmetic.
"""

import torch

from dspark_kernels.backend import jit, next_power_of_2, tl
from dspark_kernels.builds import KernelBuild
from dspark_kernels.cpu.deepseek_v4 import attention_text
from dspark_kernels.deepseek_v4.compressor import Entries, Ring
from dspark_kernels.deepseek_v4.exact_math import LANES, UNFUSED, exp, fma, tree_sum
from dspark_kernels.deepseek_v4.places import OLDEST, ROW_WORDS, SEEN, entry_at, floats_at, row_at

BLOCK = attention_text.BLOCK
MOST_HEADS = 4  # of a program


def scratch_of(num_rows: int, num_heads: int, device: torch.device) -> torch.Tensor:
    """int64 [N, programs, (1 + heads) * 64]: addresses of a block's keys, then their shares."""
    heads = _heads_of(num_heads)
    size = (num_rows, num_heads // heads, (1 + heads) * BLOCK)
    return torch.empty(size, device=device, dtype=torch.int64)


def latent_attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    rows: torch.Tensor,
    ring: Ring,
    sinks: torch.Tensor,
    entries: Entries | None,
    chosen: torch.Tensor | None,
    turns: tuple[torch.Tensor, torch.Tensor],
    scratch: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """queries, out [N, heads * D]; keys [N, D] of the pass; `chosen` int64 [N, top]: of rows that
    see more entries than `top`, those they attend to. What comes out is turned back by the row's
    own angle."""
    num_heads, width, (cos, sin) = len(sinks), keys.shape[1], turns
    heads = _heads_of(num_heads)
    latent_attend_kernel[(len(rows), num_heads // heads)](
        queries,
        keys,
        rows,
        sinks,
        None if entries is None else entries.pages,
        chosen,
        cos,
        sin,
        scratch,
        out,
        width**-0.5,
        keys.stride(0),
        ring.start,
        ring.cells,
        0 if entries is None else entries.page_stride,
        0 if entries is None else entries.start,
        RATIO=0 if entries is None else entries.ratio,
        TOP=0 if chosen is None else chosen.shape[1],
        HEADS=heads,
        WIDTH=width,
        WIDTH_BLOCK=next_power_of_2(width),
        PAIRS=cos.shape[1],
        PAIR_BLOCK=next_power_of_2(cos.shape[1]),
        BLOCK=BLOCK,
        num_warps=4,
        **UNFUSED,
    )


def _heads_of(num_heads: int) -> int:
    return min(MOST_HEADS, num_heads & -num_heads)


@jit
def latent_attend_kernel(
    queries: tl.tensor,  # [N, heads * WIDTH]
    keys: tl.tensor,  # [N, WIDTH]
    rows: tl.tensor,  # [N, words]
    sinks: tl.tensor,  # [heads]
    half: tl.tensor,  # pages
    chosen: tl.tensor,  # [N, TOP]
    cos: tl.tensor,  # [positions, PAIRS]
    sin: tl.tensor,
    scratch: tl.tensor,  # [N, programs, (1 + HEADS) * BLOCK]
    out: tl.tensor,  # [N, heads * WIDTH]
    scale: tl.tensor,
    key_stride: tl.tensor,
    ring_at: tl.tensor,
    cells: tl.tensor,
    page_stride: tl.tensor,
    before: tl.tensor,
    RATIO: tl.constexpr,
    TOP: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,
    PAIR_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    record = rows + row * ROW_WORDS
    position = tl.load(record)
    oldest = tl.load(record + OLDEST)
    recent = tl.load(record + SEEN) - oldest
    total = recent
    if RATIO > 0:
        entries = (position + 1) // RATIO
        if TOP > 0:
            entries = tl.minimum(entries, TOP)
        total += entries
    head, lane, column = tl.arange(0, HEADS), tl.arange(0, LANES), tl.arange(0, WIDTH_BLOCK)
    inside = column < WIDTH
    size = (1 + HEADS) * BLOCK
    places = scratch + (row * tl.num_programs(1) + group) * size
    shares_at = (places + BLOCK).to(tl.pointer_type(tl.float32))
    first_head = group * HEADS
    of_heads = (row * tl.num_programs(1) * HEADS + first_head + head) * WIDTH
    query = queries + of_heads[:, None] + lane[None, :]
    largest, shares = tl.load(sinks + first_head + head), tl.full((HEADS,), 1.0, tl.float32)
    values = tl.zeros((HEADS, WIDTH_BLOCK), tl.float32)
    for begin in range(0, total, BLOCK):
        number = begin + tl.arange(0, BLOCK)
        is_there = number < total
        place = _key_at(
            number, is_there, recent, oldest, position, record, keys, key_stride, ring_at, cells,
            half, page_stride, before, chosen + row * TOP if TOP > 0 else chosen,
            RATIO, TOP, WIDTH,
        )  # fmt: skip
        tl.store(places + tl.arange(0, BLOCK), place)
        key = floats_at(place)[:, None] + lane[None, :]
        product = tl.zeros((HEADS, BLOCK, LANES), tl.float32)
        for chunk in range(WIDTH // LANES):
            some = tl.load(key + chunk * LANES, mask=is_there[:, None], other=0.0)
            mine = tl.load(query + chunk * LANES)
            product = fma(mine[:, None, :], some[None, :, :], product)
        scores = tl.reshape(tree_sum(product, HEADS * BLOCK), (HEADS, BLOCK)) * scale
        scores = tl.where(is_there[None, :], scores, float("-inf"))
        found = tl.max(scores, axis=1)
        highest = tl.where(found > largest, found, largest)
        power = exp(scores - highest[:, None])
        factor = exp(largest - highest)
        shares = shares * factor + _summed(power, HEADS, BLOCK)
        largest = highest
        tl.store(shares_at + head[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :], power)
        tl.debug_barrier()  # other threads read what was stored
        values = values * factor[:, None]
        for index in range(tl.minimum(total - begin, BLOCK)):
            at = floats_at(tl.load(places + index)) + column
            share = tl.load(shares_at + head * BLOCK + index)
            value = tl.load(at, mask=inside, other=0.0)
            values = fma(share[:, None], value[None, :], values)
        tl.debug_barrier()
    target = out + of_heads[:, None]
    divided = tl.div_rn(values, tl.broadcast_to(shares[:, None], (HEADS, WIDTH_BLOCK)))
    tl.store(target + column[None, :], divided, mask=inside[None, :])
    tl.debug_barrier()
    pair = tl.arange(0, PAIR_BLOCK)
    turns = pair < PAIRS
    even_at = target + (WIDTH - 2 * PAIRS + 2 * pair)[None, :]
    even = tl.load(even_at, mask=turns[None, :], other=0.0)
    odd = tl.load(even_at + 1, mask=turns[None, :], other=0.0)
    cosine = tl.load(cos + position * PAIRS + pair, mask=turns, other=1.0)[None, :]
    sine = -tl.load(sin + position * PAIRS + pair, mask=turns, other=0.0)[None, :]
    tl.store(even_at, even * cosine + odd * -sine, mask=turns[None, :])
    tl.store(even_at + 1, odd * cosine + even * sine, mask=turns[None, :])


@jit
def _key_at(
    number: tl.tensor,
    is_there: tl.tensor,
    recent: tl.tensor,
    oldest: tl.tensor,
    position: tl.tensor,
    record: tl.tensor,
    keys: tl.tensor,
    key_stride: tl.tensor,
    ring_at: tl.tensor,
    cells: tl.tensor,
    half: tl.tensor,
    page_stride: tl.tensor,
    before: tl.tensor,
    chosen: tl.tensor,
    RATIO: tl.constexpr,
    TOP: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """Addresses of a row's keys by number, its window first."""
    place = row_at(oldest + number, record, keys, key_stride, ring_at, cells, WIDTH)
    if RATIO > 0:
        entry = number - recent
        is_entry = is_there & (entry >= 0)
        entry = tl.where(is_entry, entry, 0)
        if TOP > 0:
            visible = tl.zeros_like(entry) + (position + 1) // RATIO
            is_chosen = is_entry & (visible > TOP)
            entry = tl.where(is_chosen, tl.load(chosen + entry, mask=is_chosen, other=0), entry)
        known = entry_at(entry, is_entry, record, half, page_stride, before, RATIO, WIDTH)
        place = tl.where(is_entry, known, place)
    return place


@jit
def _summed(power: tl.tensor, HEADS: tl.constexpr, BLOCK: tl.constexpr) -> tl.tensor:
    """Of each head: lane i of 16 adds shares i, i + 16, ... in order, then the lanes as a tree."""
    PARTS: tl.constexpr = BLOCK // LANES
    parts = tl.reshape(power, (HEADS, PARTS, LANES))
    of_part = tl.arange(0, PARTS)[None, :, None]
    total = tl.zeros((HEADS, LANES), tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.sum(tl.where(of_part == part, parts, 0.0), axis=1)
    return tree_sum(total, HEADS)


def builds() -> list[KernelBuild]:
    floats = ("queries", "keys", "sinks", "cos", "sin", "out")
    base = dict.fromkeys(floats, "*fp32") | {"rows": "*i64", "scratch": "*i64", "scale": "fp32"}
    base |= dict.fromkeys(("key_stride", "ring_at", "cells", "page_stride", "before"), "i32")
    kernels = []
    for name, ratio, top in (("window", 0, 0), ("CSA", 4, 512), ("HCA", 128, 0)):
        sizes: dict[str, int | None] = {"RATIO": ratio, "TOP": top, "WIDTH": 512}
        sizes |= {"HEADS": MOST_HEADS, "WIDTH_BLOCK": 512, "PAIRS": 32, "PAIR_BLOCK": 32}
        sizes |= {"BLOCK": BLOCK}
        signature = dict(base)
        if ratio:
            signature["half"] = "*fp32"
        else:
            sizes["half"] = None
        if top:
            signature["chosen"] = "*i64"
        else:
            sizes["chosen"] = None
        kernels.append(
            KernelBuild(f"v4 attention {name}", latent_attend_kernel, signature, sizes, fuses=False)
        )
    return kernels
