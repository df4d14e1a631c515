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
REGISTERS = 16  # for the output so far


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
    """A unit is a row's heads over one head of keys."""
    group = heads.num_heads // heads.num_kv_heads
    words = (queries, rounded, heads.num_kv_heads, layer)
    return Op(f"attend_{heads.head_dim}_{group}", 0, heads.num_kv_heads, words)


def attend_round_reference(
    queries: torch.Tensor,
    cache: torch.Tensor,
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


def write_attend(text: Text, head_dim: int, group: int) -> None:
    """`group` heads share their keys; as many at once as registers allow."""
    at_once = max(1, REGISTERS * LANES // head_dim)
    _write_scores(text, head_dim // LANES)
    text.raw(
        f"define void @attend_{head_dim}_{group}(ptr %own, ptr %step, i64 %first, i64 %last) {{"
    )
    queries, rounded = text.argument("%own", 0, "ptr"), text.argument("%own", 1, "ptr")
    num_kv_heads = text.argument("%own", 2)
    layer = write_layer(text, text.argument("%own", 3))
    rows = text.load("i64", "%step", 8)
    groups = text.set(f"mul i64 {num_kv_heads}, {group * head_dim // GROUP}")
    scratch = [text.set(f"alloca {FLOATS}, align 64") for _ in range(min(at_once, group))]
    loop = Loop(text, "%first", "%last")
    row = text.set(f"udiv i64 {loop.index}, {num_kv_heads}")
    kv_head = text.set(f"urem i64 {loop.index}, {num_kv_heads}")
    slot = text.load("i64", write_entry(text, "slots", row), 8)
    visible = text.load("i64", write_entry(text, "visible", row), 8)
    keys = write_head(text, layer, slot, kv_head)
    values = text.at(keys, write_word(text, "value_bytes"))
    query_at = text.at(queries, text.set(f"mul i64 {loop.index}, {4 * group * head_dim}"))
    base, record, quad = write_places(text, rounded, groups, row, rows)
    first = text.set(f"mul i64 {kv_head}, {group * head_dim // GROUP}")
    for start in range(0, group, at_once):
        chosen = range(start, min(start + at_once, group))
        query = [text.at(query_at, 4 * head * head_dim) for head in chosen]
        outs = _over_keys(text, query, head_dim // LANES, keys, values, visible, scratch)
        for head, out in zip(chosen, outs, strict=True):
            for index in range(head_dim // GROUP):
                inside = head * head_dim // GROUP + index
                place = text.set(f"mul i64 {text.set(f'add i64 {first}, {inside}')}, {record}")
                round_group(text, out[2 * index : 2 * index + 2], text.at(base, place), quad)
    loop.close()
    text.do("ret void")
    text.raw("}")


def _over_keys(
    text: Text,
    queries: list[str],
    parts: int,
    keys: str,
    values: str,
    visible: str,
    scratch: list[str],
) -> list[list[str]]:
    """The attended numbers of each head."""
    size, kinds = 64 * parts, ["float", *[FLOATS] * (parts + 1)]
    lowest = ["0xFFF0000000000000", *[numbers(0.0)] * (parts + 1)]
    start = [Carried(*pair) for pair in zip(kinds, lowest, strict=True)] * len(queries)
    tiles = Loop(text, "0", visible, start, str(TILE))
    offset = text.set(f"mul i64 {tiles.index}, {size}")
    key_tile, value_tile = text.at(keys, offset), text.at(values, offset)
    left = text.set(f"sub i64 {visible}, {tiles.index}")
    seen = _seen(text, left)
    states = []
    for head, query in enumerate(queries):
        before, sums, *out = tiles.values[head * (parts + 2) : (head + 1) * (parts + 2)]
        text.do(f"call void @scores(ptr {query}, ptr {key_tile}, ptr {scratch[head]})")
        scores = text.load(FLOATS, scratch[head], 64)
        most, weights, shrink = _weights(text, scores, seen, before)
        text.store(FLOATS, weights, scratch[head], 64)
        sums = text.set(f"fadd {FLOATS} {text.set(f'fmul {FLOATS} {sums}, {shrink}')}, {weights}")
        states.append((most, sums, [text.set(f"fmul {FLOATS} {o}, {shrink}") for o in out]))
    count = text.set(f"call i64 @llvm.smin.i64(i64 {left}, i64 {TILE})")
    each = Loop(text, "0", count, [Carried(FLOATS, o) for _, _, out in states for o in out])
    value_at = text.at(value_tile, text.set(f"mul i64 {each.index}, {size}"))
    value = [text.load(FLOATS, text.at(value_at, 64 * part)) for part in range(parts)]
    inside = text.set(f"shl i64 {each.index}, 2")
    added = []
    for head in range(len(queries)):
        weight = text.load("float", text.at(scratch[head], inside))
        weight = text.splat("float", LANES, weight)
        for part in range(parts):
            so_far = each.values[head * parts + part]
            added.append(text.fma(LANES, weight, value[part], so_far))
    summed = each.close(added)
    following = []
    for head, (most, sums, _) in enumerate(states):
        following += [most, sums, *summed[head * parts : (head + 1) * parts]]
    final = tiles.close(following)
    attended = []
    for head in range(len(queries)):
        _, sums, *out = final[head * (parts + 2) : (head + 1) * (parts + 2)]
        total = text.set(f"fdiv float 1.0, {write_tree(text, sums)}")
        inverse = text.splat("float", LANES, total)
        attended.append([text.set(f"fmul {FLOATS} {o}, {inverse}") for o in out])
    return attended


def _weights(text: Text, scores: str, seen: str, before: str) -> tuple[str, str, str]:
    """The largest score so far, the tile's weights, and the factor for all previous sums."""
    scores = text.set(f"select <16 x i1> {seen}, {FLOATS} {scores}, {FLOATS} {numbers(HIDDEN)}")
    most = write_tree(text, scores, "fmax")
    is_more = text.set(f"fcmp ogt float {most}, {before}")
    most = text.set(f"select i1 {is_more}, float {most}, float {before}")
    base, old = text.splat("float", LANES, most), text.splat("float", LANES, before)
    weights = write_exp(text, text.set(f"fsub {FLOATS} {scores}, {base}"))
    shrink = write_exp(text, text.set(f"fsub {FLOATS} {old}, {base}"))
    return most, weights, shrink


def _seen(text: Text, left: str) -> str:
    """<16 x i1>: which keys of the tile are visible."""
    most = text.set(f"call i64 @llvm.smin.i64(i64 {left}, i64 {TILE})")
    limit = text.splat("i32", LANES, text.set(f"trunc i64 {most} to i32"))
    lanes = ", ".join(f"i32 {lane}" for lane in range(LANES))
    return text.set(f"icmp slt {WORDS} <{lanes}>, {limit}")


def _write_scores(text: Text, parts: int) -> None:
    """Of 16 keys, a lane each. Not inlined: heads would share loads and overflow registers."""
    text.raw("define internal void @scores(ptr %query, ptr %keys, ptr %out) noinline {")
    query = [text.load(FLOATS, text.at("%query", 64 * part)) for part in range(parts)]
    lanes = []
    for key in range(TILE):
        total = numbers(0.0)
        for part, q in enumerate(query):
            at = text.at("%keys", 64 * (key * parts + part))
            total = text.fma(LANES, q, text.load(FLOATS, at), total)
        lanes.append(total)
    width = LANES
    while len(lanes) > 1:
        width //= 2
        pairs = zip(lanes[0::2], lanes[1::2], strict=True)
        lanes = [_halved(text, one, other, width) for one, other in pairs]
    text.store(FLOATS, lanes[0], "%out", 64)
    text.do("ret void")
    text.raw("}")


def _halved(text: Text, one: str, other: str, width: int) -> str:
    """Sums of lanes `width` apart in each run of 2 · width, of `one`, then of `other`."""
    runs = range(0, 2 * LANES, 2 * width)
    halves = []
    for start in (0, width):
        lanes = [run + start + lane for run in runs for lane in range(width)]
        mask = ", ".join(f"i32 {lane}" for lane in lanes)
        halves.append(
            text.set(f"shufflevector {FLOATS} {one}, {FLOATS} {other}, <16 x i32> <{mask}>")
        )
    return text.set(f"fadd {FLOATS} {halves[0]}, {halves[1]}")
