"""Attention of each row over its slot's keys, and rounding, in one.

Keys come in tiles of 16, in their order, each on its own: score = sum of q · k in 16 lanes by fma,
the lanes in a tree; with m the largest so far, p = exp(score - m); sums and outputs so far are
multiplied by exp(m before - m); then out = fma(p, value, out), key after key. In the end
out · (1 / sum of p).
"""

import torch

from dspark_kernels.cpu.exact import fma
from dspark_kernels.cpu.float_text import (
    FLOATS,
    LANES,
    WORDS,
    exp,
    numbers,
    tree_sum,
    write_exp,
    write_tree,
)
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text
from dspark_kernels.cpu.rope_write import Heads, write_entry, write_head, write_layer, write_word
from dspark_kernels.cpu.rounded import GROUP, RoundedRows, empty_rounded, round_rows_reference
from dspark_kernels.cpu.rounded_text import round_group, write_places
from dspark_kernels.cpu.runtime import Op, current
from dspark_kernels.cpu.step_words import Place, step_words

TILE = LANES  # keys
HIDDEN = float("-inf")


def attend_round(
    queries: torch.Tensor,
    cache: torch.Tensor,
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
    runtime.run([attend_round_op(queries, out.data, layer, heads)], len(queries), step)
    return out


def attend_round_op(queries: torch.Tensor, rounded: torch.Tensor, layer: int, heads: Heads) -> Op:
    """A unit is a head of a row."""
    group = heads.num_heads // heads.num_kv_heads
    words = (queries, rounded, heads.num_heads, group, layer)
    return Op(f"attend_{heads.head_dim}", 0, heads.num_heads, words)


def attend_round_reference(
    queries: torch.Tensor,
    cache: torch.Tensor,
    layer: int,
    place: Place,
    rotary: tuple[torch.Tensor, torch.Tensor],
    heads: Heads,
) -> RoundedRows:
    step_words(place, rotary, cache)  # refuses what has no place
    group = heads.num_heads // heads.num_kv_heads
    rows = []
    for query, slot, visible in zip(queries, place.slots, place.visible, strict=True):
        keys, values = cache[layer, :, slot, :, :visible].repeat_interleave(group, dim=1)
        rows.append(_attended(query, keys, values).flatten())
    return round_rows_reference(torch.stack(rows))


def _attended(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """query [heads, D], keys and values [heads, L, D] -> [heads, D]."""
    lanes = torch.zeros(*keys.shape[:2], LANES)
    for q, k in zip(query.split(LANES, dim=-1), keys.split(LANES, dim=-1), strict=True):
        lanes = fma(q.unsqueeze(1), k, lanes)
    scores = tree_sum(lanes)
    short = -scores.shape[1] % TILE
    scores = torch.nn.functional.pad(scores, (0, short), value=HIDDEN)
    out, most = torch.zeros_like(query), torch.full((len(query), 1), HIDDEN)
    sums = torch.zeros(len(query), TILE)
    for index, tile in enumerate(scores.split(TILE, dim=1)):
        before, most = most, torch.maximum(most, tile.amax(-1, keepdim=True))
        shrink, weights = exp(before - most), exp(tile - most)
        sums, out = sums * shrink + weights, out * shrink
        for lane in range(min(TILE, values.shape[1] - index * TILE)):
            out = fma(weights[:, lane, None], values[:, index * TILE + lane], out)
    return out * (1.0 / tree_sum(sums)).unsqueeze(-1)


def write_attend(text: Text, head_dim: int) -> None:
    parts, size = head_dim // LANES, 4 * head_dim
    text.raw(f"define void @attend_{head_dim}(ptr %own, ptr %step, i64 %first, i64 %last) {{")
    queries, rounded = text.argument("%own", 0, "ptr"), text.argument("%own", 1, "ptr")
    num_heads, group = text.argument("%own", 2), text.argument("%own", 3)
    layer = write_layer(text, text.argument("%own", 4))
    rows = text.load("i64", "%step", 8)
    groups = text.set(f"mul i64 {num_heads}, {head_dim // GROUP}")
    scratch = text.set(f"alloca {FLOATS}, align 64")
    loop = Loop(text, "%first", "%last")
    row = text.set(f"udiv i64 {loop.index}, {num_heads}")
    head = text.set(f"urem i64 {loop.index}, {num_heads}")
    slot = text.load("i64", write_entry(text, "slots", row), 8)
    visible = text.load("i64", write_entry(text, "visible", row), 8)
    keys = write_head(text, layer, slot, text.set(f"udiv i64 {head}, {group}"))
    values = text.at(keys, write_word(text, "value_bytes"))
    query_at = text.at(queries, text.set(f"mul i64 {loop.index}, {size}"))
    query = [text.load(FLOATS, text.at(query_at, 64 * part)) for part in range(parts)]
    out, sums = _over_keys(text, query, keys, values, visible, scratch)
    total = text.set(f"fdiv float 1.0, {write_tree(text, sums)}")
    inverse = text.splat("float", LANES, total)
    out = [text.set(f"fmul {FLOATS} {each}, {inverse}") for each in out]
    base, record, quad = write_places(text, rounded, groups, row, rows)
    first = text.set(f"mul i64 {head}, {head_dim // GROUP}")
    for index in range(head_dim // GROUP):
        place = text.set(f"mul i64 {text.set(f'add i64 {first}, {index}')}, {record}")
        round_group(text, out[2 * index : 2 * index + 2], text.at(base, place), quad)
    loop.close()
    text.do("ret void")
    text.raw("}")


def _over_keys(
    text: Text, query: list[str], keys: str, values: str, visible: str, scratch: str
) -> tuple[list[str], str]:
    """-> outputs, not yet divided, and the sums of their weights."""
    size = 64 * len(query)
    start = [Carried(FLOATS, numbers(0.0))] * (len(query) + 1)
    tiles = Loop(text, "0", visible, [Carried("float", "0xFFF0000000000000"), *start], str(TILE))
    before, sums, *out = tiles.values
    offset = text.set(f"mul i64 {tiles.index}, {size}")
    scores = _scores(text, query, text.at(keys, offset))
    left = text.set(f"sub i64 {visible}, {tiles.index}")
    seen = _seen(text, left)
    hidden = numbers(HIDDEN)
    scores = text.set(f"select <16 x i1> {seen}, {FLOATS} {scores}, {FLOATS} {hidden}")
    most = write_tree(text, scores, "fmax")
    is_more = text.set(f"fcmp ogt float {most}, {before}")
    most = text.set(f"select i1 {is_more}, float {most}, float {before}")
    base = text.splat("float", LANES, most)
    old = text.splat("float", LANES, before)
    shrink = write_exp(text, text.set(f"fsub {FLOATS} {old}, {base}"))
    weights = write_exp(text, text.set(f"fsub {FLOATS} {scores}, {base}"))
    text.store(FLOATS, weights, scratch, 64)
    sums = text.set(f"fadd {FLOATS} {text.set(f'fmul {FLOATS} {sums}, {shrink}')}, {weights}")
    out = [text.set(f"fmul {FLOATS} {each}, {shrink}") for each in out]
    count = text.set(f"call i64 @llvm.smin.i64(i64 {left}, i64 {TILE})")
    value_tile = text.at(values, offset)
    each = Loop(text, "0", count, [Carried(FLOATS, value) for value in out])
    weight = text.load("float", text.at(scratch, text.set(f"shl i64 {each.index}, 2")))
    weight = text.splat("float", LANES, weight)
    value = text.at(value_tile, text.set(f"mul i64 {each.index}, {size}"))
    added = [
        text.fma(LANES, weight, text.load(FLOATS, text.at(value, 64 * part)), so_far)
        for part, so_far in enumerate(each.values)
    ]
    out = each.close(added)
    _, sums, *out = tiles.close([most, sums, *out])
    return out, sums


def _seen(text: Text, left: str) -> str:
    """<16 x i1>: which keys of the tile are visible."""
    most = text.set(f"call i64 @llvm.smin.i64(i64 {left}, i64 {TILE})")
    limit = text.splat("i32", LANES, text.set(f"trunc i64 {most} to i32"))
    lanes = ", ".join(f"i32 {lane}" for lane in range(LANES))
    return text.set(f"icmp slt {WORDS} <{lanes}>, {limit}")


def _scores(text: Text, query: list[str], keys: str) -> str:
    """Of 16 keys, a lane each."""
    lanes = []
    for key in range(TILE):
        total = numbers(0.0)
        for part, q in enumerate(query):
            at = text.at(keys, 64 * (key * len(query) + part))
            total = text.fma(LANES, q, text.load(FLOATS, at), total)
        lanes.append(total)
    width = LANES
    while len(lanes) > 1:
        width //= 2
        pairs = zip(lanes[0::2], lanes[1::2], strict=True)
        lanes = [_halved(text, one, other, width) for one, other in pairs]
    return lanes[0]


def _halved(text: Text, one: str, other: str, width: int) -> str:
    """Sums of what lies `width` lanes apart in each run of 2 · width, of one, then the other."""
    runs = range(0, 2 * LANES, 2 * width)
    halves = []
    for start in (0, width):
        lanes = [run + start + lane for run in runs for lane in range(width)]
        mask = ", ".join(f"i32 {lane}" for lane in lanes)
        halves.append(
            text.set(f"shufflevector {FLOATS} {one}, {FLOATS} {other}, <16 x i32> <{mask}>")
        )
    return text.set(f"fadd {FLOATS} {halves[0]}, {halves[1]}")
