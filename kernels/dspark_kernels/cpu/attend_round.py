"""Attention of each row over its slot's keys, and rounding, in one.

Keys come in tiles of 16, in their order, each on its own: score = sum of q · k in 16 lanes by fma,
the lanes in a tree; with m the largest so far, p = exp(score - m); sums and outputs so far are
multiplied by exp(m before - m); then out = fma(p, value, out), key after key. In the end
out · (1 / sum of p).
"""

import torch

from dspark_kernels.cpu.exact import fma
from dspark_kernels.cpu.float_text import LANES, exp, tree_sum
from dspark_kernels.cpu.rope_write import Heads
from dspark_kernels.cpu.rounded import RoundedRows, empty_rounded, round_rows_reference
from dspark_kernels.cpu.runtime import Op, current
from dspark_kernels.cpu.step_words import Pages, Place, step_words

TILE = LANES  # keys
HIDDEN = float("-inf")


def attend_round(
    queries: torch.Tensor,
    cache: Pages,
    layer: int,
    place: Place,
    rotary: tuple[torch.Tensor, torch.Tensor],
    heads: Heads,
) -> RoundedRows:
    """queries float32 [N, heads, D], scaled; the others as in step_words."""
    runtime = current()
    if runtime is None:
        return attend_round_reference(queries, cache, layer, place, rotary, heads)
    queries = queries.contiguous()
    out = empty_rounded(len(queries), heads.num_heads * heads.head_dim)
    step = step_words(place, rotary, cache)
    scratch = attend_scratch(len(queries), heads)
    op = attend_round_op(queries, out.data, layer, heads, scratch)
    runtime.run([op], len(queries), step)
    return out


def run_bytes(group: int, head_dim: int) -> int:
    """Memory of a row and head of keys: attend_text's Run."""
    padded = -(-group // LANES) * LANES
    return 4 * (padded * (TILE + 2) + group * (LANES + head_dim))


def attend_scratch(num_rows: int, heads: Heads) -> torch.Tensor:
    """Memory for what rows have so far; operations that follow each other may share it."""
    size = run_bytes(heads.num_heads // heads.num_kv_heads, heads.head_dim)
    return torch.zeros(num_rows, heads.num_kv_heads, size, dtype=torch.uint8)


def attend_round_op(
    queries: torch.Tensor, rounded: torch.Tensor, layer: int, heads: Heads, scratch: torch.Tensor
) -> Op:
    """A unit is a row's heads over one head of keys, the rows of a head next to each other."""
    group = heads.num_heads // heads.num_kv_heads
    words = (queries, rounded, heads.num_kv_heads, layer, scratch)
    return Op(f"attend_{heads.head_dim}_{group}", 0, heads.num_kv_heads, words)


def attend_round_reference(
    queries: torch.Tensor,
    cache: Pages,
    layer: int,
    place: Place,
    rotary: tuple[torch.Tensor, torch.Tensor],
    heads: Heads,
) -> RoundedRows:
    """As attend_round, in torch."""
    step_words(place, rotary, cache)  # raises for invalid positions or slots
    group = heads.num_heads // heads.num_kv_heads
    rows = []
    for query, slot, visible in zip(queries, place.slots, place.visible, strict=True):
        keys, values = cache.of_slot(layer, int(slot), int(visible)).repeat_interleave(group, dim=1)
        rows.append(attended(query, keys, values).flatten())
    return round_rows_reference(torch.stack(rows))


def attended(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sinks: torch.Tensor | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """query [heads, D], keys and values [heads, L, D] of a slot up to the row's own -> [heads, D].
    sinks [heads]: as scores of keys without values; window: how many of the last keys are seen."""
    unseen = 0 if window is None else max(0, keys.shape[1] - window)
    skipped = unseen // TILE * TILE  # tiles do not move with the window
    keys, values, unseen = keys[:, skipped:], values[:, skipped:], unseen - skipped
    lanes = torch.zeros(*keys.shape[:2], LANES)
    for q, k in zip(query.split(LANES, dim=-1), keys.split(LANES, dim=-1), strict=True):
        lanes = fma(q.unsqueeze(1), k, lanes)
    scores = tree_sum(lanes)
    short = -scores.shape[1] % TILE
    scores = torch.nn.functional.pad(scores, (0, short), value=HIDDEN)
    scores[:, :unseen] = HIDDEN
    out, most = torch.zeros_like(query), torch.full((len(query), 1), HIDDEN)
    sums = torch.zeros(len(query), TILE)
    if sinks is not None:
        most, sums[:, 0] = sinks.unsqueeze(1), 1.0
    for index, tile in enumerate(scores.split(TILE, dim=1)):
        before, most = most, torch.maximum(most, tile.amax(-1, keepdim=True))
        shrink, weights = exp(before - most), exp(tile - most)
        sums, out = sums * shrink + weights, out * shrink
        for lane in range(unseen if index == 0 else 0, min(TILE, values.shape[1] - index * TILE)):
            out = fma(weights[:, lane, None], values[:, index * TILE + lane], out)
    return out * (1.0 / tree_sum(sums)).unsqueeze(-1)


def attend_floats_op(
    queries: torch.Tensor,
    out: torch.Tensor,
    layer: int,
    heads: Heads,
    scratch: torch.Tensor,
    sinks: torch.Tensor,
    window: int,
) -> Op:
    """As attend_round_op, into float32 [N, heads * D], with sinks [heads] and a window."""
    group = heads.num_heads // heads.num_kv_heads
    words = (queries, out, heads.num_kv_heads, layer, scratch, sinks, window)
    return Op(f"attend_floats_{heads.head_dim}_{group}", 0, heads.num_kv_heads, words)


def attend_floats_reference(
    queries: torch.Tensor,
    cache: Pages,
    layer: int,
    place: Place,
    sinks: torch.Tensor,
    window: int,
) -> torch.Tensor:
    """As attend_floats_op, in torch: queries [N, heads, D] -> [N, heads * D]."""
    rows = []
    for query, slot, visible in zip(queries, place.slots, place.visible, strict=True):
        both = cache.of_slot(layer, int(slot), int(visible))
        keys, values = both.repeat_interleave(len(query) // both.shape[1], dim=1)
        rows.append(attended(query, keys, values, sinks, window).flatten())
    return torch.stack(rows)
