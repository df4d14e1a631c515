"""Attention in LLVM's text. A run of rows of one slot takes the keys tile by tile, so that a tile
comes from memory once for all of them: first the scores of all rows' heads, then their weights,
then the values. The steps of one head wait for each other; those of many do not.
"""

from typing import NamedTuple

from dspark_kernels.cpu.attend_round import HIDDEN, TILE, run_bytes
from dspark_kernels.cpu.float_text import (
    FLOATS,
    LANES,
    WORDS,
    number,
    numbers,
    write_exp,
    write_tree,
)
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text
from dspark_kernels.cpu.rope_write import (
    write_entry,
    write_head,
    write_layer,
    write_page,
    write_table,
    write_word,
)
from dspark_kernels.cpu.rounded import GROUP
from dspark_kernels.cpu.rounded_text import round_group, write_place

REGISTERS = 16  # for the output so far
QUERY_REGISTERS, KEYS_AT_ONCE = 12, 4  # that share loads of keys
L1_BYTES = 32_768  # for what a run has so far
VECTOR = 4 * LANES
LINE, TILES_AHEAD = 64, 2
FARTHEST = 1 << 62
FETCHING_RUNS = 8  # of a pass; keys of fewer come in time


class Run(NamedTuple):
    """Rows of one slot and their heads, over one head of keys. Arrays of all heads: the tile's
    scores, then weights; the largest score; the factor of all before the tile; the sums of weights;
    the outputs. The first three are padded to whole vectors of heads.
    """

    row: str
    num_rows: str
    num_heads: str
    scores: str
    most: str
    shrink: str
    sums: str
    outs: str


def write_attend(text: Text, head_dim: int, group: int, *, floats: bool = False) -> None:
    """`group` heads share their keys. A unit is a row of one of the heads of keys. `floats`: rows
    are not rounded, see at most so many keys back, and have sinks."""
    for heads in {len(chosen) for chosen in _heads_of_scores(group, head_dim)}:
        _write_scores(text, heads, head_dim // LANES, is_windowed=floats)
    _write_weights(text)
    name = f"attend_{'floats_' * floats}{head_dim}_{group}"
    text.raw(f"define void @{name}(ptr %own, ptr %step, i64 %first, i64 %last) {{")
    queries, rounded = text.argument("%own", 0, "ptr"), text.argument("%own", 1, "ptr")
    num_kv_heads = text.argument("%own", 2)
    layer = write_layer(text, text.argument("%own", 3))
    scratch = text.argument("%own", 4, "ptr")
    rows = text.load("i64", "%step", 8)
    row_bytes = text.set(f"mul i64 {num_kv_heads}, {4 * group * head_dim}")
    sinks = text.argument("%own", 5, "ptr") if floats else None
    window = text.argument("%own", 6) if floats else None
    units = Loop(text, "%first", "%last")
    kv_head, row = (text.set(f"{op} i64 {units.index}, {rows}") for op in ("udiv", "urem"))
    slot = text.load("i64", write_entry(text, "slots", row), 8)
    most_rows = max(1, L1_BYTES // run_bytes(group, head_dim))
    left = _least(text, text.set(f"sub i64 %last, {units.index}"), most_rows)
    count, shortest, longest = _rows_of_slot(text, row, slot, left)
    memory = text.at(scratch, text.set(f"mul i64 {units.index}, {run_bytes(group, head_dim)}"))
    run = _run(text, memory, row, count, group)
    keys, table = write_head(text, layer, kv_head), write_table(text, slot)
    inside = text.set(f"mul i64 {kv_head}, {4 * group * head_dim}")
    query = text.at(text.at(queries, inside), text.set(f"mul i64 {row}, {row_bytes}"))
    is_many = text.set(f"icmp sge i64 {rows}, {text.set(f'mul i64 {count}, {FETCHING_RUNS}')}")
    following = text.set(f"add i64 {units.index}, {count}")
    following = _least(text, following, text.set("sub i64 %last, 1"))
    _fetch_first(text, following, layer, head_dim, is_many)
    _begin(text, run, head_dim)
    first_tile = "0"
    if sinks is not None and window is not None:
        _begin_with_sinks(
            text, run, text.at(sinks, text.set(f"mul i64 {kv_head}, {4 * group}")), group
        )
        begun = text.set(f"sub i64 {shortest}, {window}")
        begun = text.set(f"call i64 @llvm.smax.i64(i64 {begun}, i64 0)")
        first_tile = text.set(f"and i64 {begun}, -{TILE}")
    tiles = Loop(text, first_tile, longest, step=str(TILE))
    page, place = write_page(text, table, tiles.index)
    key_tile = text.at(text.at(keys, page), text.set(f"mul i64 {place}, {4 * head_dim}"))
    ahead = text.set(f"add i64 {tiles.index}, {TILES_AHEAD * TILE}")
    is_inside = text.set(f"icmp slt i64 {ahead}, {longest}")
    tile_bytes = TILE * 4 * head_dim
    is_wanted = text.set(f"and i1 {is_many}, {is_inside}")
    _fetch(text, text.at(key_tile, TILES_AHEAD * tile_bytes), tile_bytes, is_wanted)
    _score(text, run, tiles.index, (query, row_bytes), key_tile, (group, head_dim), window)
    text.do(
        f"call void @weights(ptr {run.scores}, ptr {run.most}, ptr {run.shrink}, ptr {run.sums}, "
        f"i64 {run.num_heads})"
    )
    values = text.at(key_tile, write_word(text, "value_bytes"))
    _add_values(text, run, tiles.index, values, (group, head_dim), window)
    tiles.close()
    if floats:
        out = text.at(text.at(rounded, inside), text.set(f"mul i64 {row}, {row_bytes}"))
        _finish_floats(text, run, out, row_bytes, (group, head_dim))
    else:
        _finish(text, run, rounded, (rows, num_kv_heads, kv_head), (group, head_dim))
    units.close(step=count)
    text.do("ret void")
    text.raw("}")
    text.raw("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")


def _fetch_first(text: Text, unit: str, layer: str, head_dim: int, is_wanted: str) -> None:
    """The first tiles of the run that begins with this unit."""
    rows = text.load("i64", "%step", 8)
    kv_head, row = (text.set(f"{op} i64 {unit}, {rows}") for op in ("udiv", "urem"))
    slot = text.load("i64", write_entry(text, "slots", row), 8)
    page, _ = write_page(text, write_table(text, slot), "0")
    keys = text.at(write_head(text, layer, kv_head), page)
    _fetch(text, keys, TILES_AHEAD * TILE * 4 * head_dim, is_wanted)


def _fetch(text: Text, keys: str, size: int, is_wanted: str) -> None:
    """So many bytes of keys, and of values, into the second-level cache. The processor does so too,
    but begins too late for the few keys of each of many requests."""
    size_or_none = text.set(f"select i1 {is_wanted}, i64 {size}, i64 0")
    values = text.at(keys, write_word(text, "value_bytes"))
    lines = Loop(text, "0", size_or_none, step=str(LINE))
    for base in (keys, values):
        place = text.at(base, lines.index)
        text.do(f"call void @llvm.prefetch.p0(ptr {place}, i32 0, i32 2, i32 1)")
    lines.close()


def _least(text: Text, one: str, other: str | int) -> str:
    return text.set(f"call i64 @llvm.smin.i64(i64 {one}, i64 {other})")


def _rows_of_slot(text: Text, row: str, slot: str, limit: str) -> tuple[str, str, str]:
    """How many rows from this one on are of its slot and of its head of keys, at most `limit`, and
    where the keys that one of them sees end, at least and at most."""
    rows = text.load("i64", "%step", 8)
    limit = _least(text, limit, text.set(f"sub i64 {rows}, {row}"))
    starts = [Carried("i1", "true"), *(Carried("i64", str(each)) for each in (0, FARTHEST, 0))]
    loop = Loop(text, "0", limit, starts)
    is_so_far, count, shortest, longest = loop.values
    other = text.set(f"add i64 {row}, {loop.index}")
    its_slot = text.load("i64", write_entry(text, "slots", other), 8)
    is_same = text.set(f"and i1 {is_so_far}, {text.set(f'icmp eq i64 {its_slot}, {slot}')}")
    visible = text.load("i64", write_entry(text, "visible", other), 8)
    more = text.set(f"call i64 @llvm.smax.i64(i64 {longest}, i64 {visible})")
    longest = text.set(f"select i1 {is_same}, i64 {more}, i64 {longest}")
    less = _least(text, shortest, visible)
    shortest = text.set(f"select i1 {is_same}, i64 {less}, i64 {shortest}")
    count = text.set(f"add i64 {count}, {text.set(f'zext i1 {is_same} to i64')}")
    _, count, shortest, longest = loop.close([is_same, count, shortest, longest])
    return count, shortest, longest


def _run(text: Text, memory: str, row: str, count: str, group: int) -> Run:
    heads = text.set(f"mul i64 {count}, {group}")
    padded = text.set(f"and i64 {text.set(f'add i64 {heads}, {LANES - 1}')}, -{LANES}")
    places = [memory]
    for size, count_of in ((VECTOR, padded), (4, padded), (4, padded), (VECTOR, heads)):
        places.append(text.at(places[-1], text.set(f"mul i64 {count_of}, {size}")))
    return Run(row, count, heads, *places)


def _begin(text: Text, run: Run, head_dim: int) -> None:
    each = Loop(text, "0", run.num_heads, step=str(LANES))
    most = text.at(run.most, text.set(f"shl i64 {each.index}, 2"))
    text.store(FLOATS, numbers(HIDDEN), most)
    each.close()
    size = text.set(f"mul i64 {run.num_heads}, {VECTOR + 4 * head_dim}")  # sums and outputs
    each = Loop(text, "0", size, step=str(VECTOR))
    text.store(FLOATS, numbers(0.0), text.at(run.sums, each.index))
    each.close()


def _begin_with_sinks(text: Text, run: Run, sinks: str, group: int) -> None:
    """As if a key without a value had the sink for its score."""
    first = ", ".join(f"float {number(float(lane == 0))}" for lane in range(LANES))
    rows = Loop(text, "0", run.num_rows)
    heads = Loop(text, "0", str(group))
    index = text.set(f"add i64 {text.set(f'mul i64 {rows.index}, {group}')}, {heads.index}")
    sink = text.load("float", text.at(sinks, text.set(f"shl i64 {heads.index}, 2")))
    text.store("float", sink, text.at(run.most, text.set(f"shl i64 {index}, 2")))
    text.store(FLOATS, f"<{first}>", text.at(run.sums, text.set(f"mul i64 {index}, {VECTOR}")))
    heads.close()
    rows.close()


def _unseen(text: Text, run: Run, row: str, first: str, window: str) -> str:
    """How many keys of the tile that begins there are before a row's window."""
    entry = write_entry(text, "visible", text.set(f"add i64 {run.row}, {row}"))
    begun = text.set(f"sub i64 {text.load('i64', entry, 8)}, {window}")
    begun = _least(text, text.set(f"sub i64 {begun}, {first}"), TILE)
    return text.set(f"call i64 @llvm.smax.i64(i64 {begun}, i64 0)")


def _visible(text: Text, run: Run, row: str, first: str) -> str:
    """How many keys of the tile that begins there a row of the run sees."""
    entry = write_entry(text, "visible", text.set(f"add i64 {run.row}, {row}"))
    left = text.set(f"sub i64 {text.load('i64', entry, 8)}, {first}")
    return text.set(f"call i64 @llvm.smax.i64(i64 {_least(text, left, TILE)}, i64 0)")


def _score(
    text: Text,
    run: Run,
    first: str,
    query: tuple[str, str],
    keys: str,
    sizes: tuple[int, int],
    window: str | None,
) -> None:
    """`query` of the run's first row, with the bytes from row to row."""
    group, head_dim = sizes
    rows = Loop(text, "0", run.num_rows)
    limits = f"i32 {text.set(f'trunc i64 {_visible(text, run, rows.index, first)} to i32')}"
    if window is not None:
        unseen = _unseen(text, run, rows.index, first, window)
        limits += f", i32 {text.set(f'trunc i64 {unseen} to i32')}"
    row = text.at(query[0], text.set(f"mul i64 {rows.index}, {query[1]}"))
    before = text.set(f"mul i64 {rows.index}, {group}")
    for heads in _heads_of_scores(group, head_dim):
        own = text.at(row, heads.start * 4 * head_dim)
        index = text.set(f"add i64 {before}, {heads.start}")
        place = text.at(run.scores, text.set(f"mul i64 {index}, {VECTOR}"))
        text.do(f"call void @scores_of_{len(heads)}(ptr {own}, ptr {keys}, ptr {place}, {limits})")
    rows.close()


def _heads_of_scores(group: int, head_dim: int) -> list[range]:
    at_once = max(1, min(QUERY_REGISTERS // KEYS_AT_ONCE, QUERY_REGISTERS * LANES // head_dim))
    return [range(start, min(start + at_once, group)) for start in range(0, group, at_once)]


def _write_weights(text: Text) -> None:
    """Of all heads of a run: the largest of 16 at once, then weights and sums one by one."""
    arguments = "ptr %scores, ptr %most, ptr %shrink, ptr %sums, i64 %heads"
    text.raw(f"define internal void @weights({arguments}) noinline {{")
    some = Loop(text, "0", "%heads", step=str(LANES))
    scores = text.at("%scores", text.set(f"mul i64 {some.index}, {VECTOR}"))
    each = [text.load(FLOATS, text.at(scores, VECTOR * head)) for head in range(LANES)]
    most = _across(text, each, "fmax")
    inside = text.set(f"shl i64 {some.index}, 2")
    before = text.load(FLOATS, text.at("%most", inside))
    most = _combined(text, most, before, "fmax")
    text.store(FLOATS, most, text.at("%most", inside))
    shrink = write_exp(text, text.set(f"fsub {FLOATS} {before}, {most}"))
    text.store(FLOATS, shrink, text.at("%shrink", inside))
    some.close()
    heads = Loop(text, "0", "%heads")
    inside = text.set(f"mul i64 {heads.index}, {VECTOR}")
    score, summed = text.at("%scores", inside), text.at("%sums", inside)
    of_head = text.set(f"shl i64 {heads.index}, 2")
    most, shrink = (
        text.splat("float", LANES, text.load("float", text.at(base, of_head)))
        for base in ("%most", "%shrink")
    )
    weights = write_exp(text, text.set(f"fsub {FLOATS} {text.load(FLOATS, score)}, {most}"))
    text.store(FLOATS, weights, score)
    before = text.set(f"fmul {FLOATS} {text.load(FLOATS, summed)}, {shrink}")
    text.store(FLOATS, text.set(f"fadd {FLOATS} {before}, {weights}"), summed)
    heads.close()
    text.do("ret void")
    text.raw("}")


def _add_values(
    text: Text, run: Run, first: str, values: str, sizes: tuple[int, int], window: str | None
) -> None:
    """Row by row, as many of its heads at once as registers allow."""
    group, head_dim = sizes
    at_once = max(1, REGISTERS * LANES // head_dim)
    rows = Loop(text, "0", run.num_rows)
    count = _visible(text, run, rows.index, first)
    begun = "0" if window is None else _unseen(text, run, rows.index, first, window)
    before = text.set(f"mul i64 {rows.index}, {group}")
    for start in range(0, group, at_once):
        head = text.set(f"add i64 {before}, {start}")
        weights, shrink, outs = (
            text.at(base, text.set(f"mul i64 {head}, {size}"))
            for base, size in ((run.scores, VECTOR), (run.shrink, 4), (run.outs, 4 * head_dim))
        )
        heads = range(min(at_once, group - start))
        seen = (begun, count)
        _add_to_heads(text, heads, (weights, shrink, outs), values, seen, head_dim // LANES)
    rows.close()


def _add_to_heads(
    text: Text,
    heads: range,
    state: tuple[str, str, str],
    values: str,
    seen: tuple[str, str],
    parts: int,
) -> None:
    """`seen`: the first key of the tile that counts, and the one behind the last."""
    weights, shrink, outs = state
    so_far = []
    for head in heads:
        factor = text.splat("float", LANES, text.load("float", text.at(shrink, 4 * head)))
        for part in range(parts):
            out = text.load(FLOATS, text.at(outs, VECTOR * (head * parts + part)))
            so_far.append(text.set(f"fmul {FLOATS} {out}, {factor}"))
    each = Loop(text, *seen, [Carried(FLOATS, out) for out in so_far])
    value_at = text.at(values, text.set(f"mul i64 {each.index}, {VECTOR * parts}"))
    value = [text.load(FLOATS, text.at(value_at, VECTOR * part)) for part in range(parts)]
    weight_at = text.at(weights, text.set(f"shl i64 {each.index}, 2"))
    added = []
    for head in heads:
        weight = text.load("float", text.at(weight_at, VECTOR * head))
        weight = text.splat("float", LANES, weight)
        for part in range(parts):
            out = each.values[head * parts + part]
            added.append(text.fma(LANES, weight, value[part], out))
    for index, out in enumerate(each.close(added)):
        text.store(FLOATS, out, text.at(outs, VECTOR * index))


def _finish(
    text: Text, run: Run, rounded: str, place: tuple[str, str, str], sizes: tuple[int, int]
) -> None:
    """`place`: the number of rows, of heads of keys, and which of them."""
    (rows, num_kv_heads, kv_head), (group, head_dim) = place, sizes
    size = group * head_dim // GROUP
    groups = text.set(f"mul i64 {num_kv_heads}, {size}")
    each = Loop(text, "0", run.num_rows)
    row = text.set(f"add i64 {run.row}, {each.index}")
    target = write_place(text, rounded, groups, row, rows)
    first = text.set(f"mul i64 {kv_head}, {size}")
    before = text.set(f"mul i64 {each.index}, {group}")
    heads = Loop(text, "0", str(group))
    head = text.set(f"add i64 {before}, {heads.index}")
    sums = text.load(FLOATS, text.at(run.sums, text.set(f"mul i64 {head}, {VECTOR}")))
    total = text.set(f"fdiv float 1.0, {write_tree(text, sums)}")
    inverse = text.splat("float", LANES, total)
    outs = text.at(run.outs, text.set(f"mul i64 {head}, {4 * head_dim}"))
    for index in range(head_dim // GROUP):
        halves = [text.load(FLOATS, text.at(outs, 128 * index + at)) for at in (0, VECTOR)]
        halves = [text.set(f"fmul {FLOATS} {half}, {inverse}") for half in halves]
        inside = text.set(f"mul i64 {heads.index}, {head_dim // GROUP}")
        inside = text.set(f"add i64 {text.set(f'add i64 {inside}, {index}')}, {first}")
        round_group(text, halves, target, inside)
    heads.close()
    each.close()


def _finish_floats(text: Text, run: Run, out: str, row_bytes: str, sizes: tuple[int, int]) -> None:
    """`out` of the run's first row, with the bytes from row to row."""
    group, head_dim = sizes
    rows = Loop(text, "0", run.num_rows)
    target = text.at(out, text.set(f"mul i64 {rows.index}, {row_bytes}"))
    before = text.set(f"mul i64 {rows.index}, {group}")
    heads = Loop(text, "0", str(group))
    head = text.set(f"add i64 {before}, {heads.index}")
    sums = text.load(FLOATS, text.at(run.sums, text.set(f"mul i64 {head}, {VECTOR}")))
    total = text.set(f"fdiv float 1.0, {write_tree(text, sums)}")
    inverse = text.splat("float", LANES, total)
    outs = text.at(run.outs, text.set(f"mul i64 {head}, {4 * head_dim}"))
    place = text.at(target, text.set(f"mul i64 {heads.index}, {4 * head_dim}"))
    for at in range(0, 4 * head_dim, VECTOR):
        value = text.set(f"fmul {FLOATS} {text.load(FLOATS, text.at(outs, at))}, {inverse}")
        text.store(FLOATS, value, text.at(place, at))
    heads.close()
    rows.close()


def _write_scores(text: Text, num_heads: int, parts: int, *, is_windowed: bool) -> None:
    """Of 16 keys, a lane each, of which those before `seen` and from `begun` on count."""
    arguments = "ptr %query, ptr %keys, ptr %out, i32 %seen" + ", i32 %begun" * is_windowed
    text.raw(f"define internal void @scores_of_{num_heads}({arguments}) noinline {{")
    heads = range(num_heads)
    query = [
        [text.load(FLOATS, text.at("%query", VECTOR * (head * parts + part))) for head in heads]
        for part in range(parts)
    ]
    quarters: list[list[str]] = [[] for _ in heads]
    for first in range(0, TILE, KEYS_AT_ONCE):
        totals = [[numbers(0.0)] * KEYS_AT_ONCE for _ in heads]
        for part in range(parts):
            for key in range(KEYS_AT_ONCE):
                at = text.at("%keys", VECTOR * ((first + key) * parts + part))
                loaded = text.load(FLOATS, at)
                for head in heads:
                    q, before = query[part][head], totals[head][key]
                    totals[head][key] = text.fma(LANES, q, loaded, before)
        for head in heads:
            quarters[head].append(_across(text, totals[head], "fadd"))
    places = ", ".join(f"i32 {lane}" for lane in range(LANES))
    limit = text.splat("i32", LANES, "%seen")
    is_seen = text.set(f"icmp slt {WORDS} <{places}>, {limit}")
    if is_windowed:
        start = text.splat("i32", LANES, "%begun")
        is_inside = text.set(f"icmp sge {WORDS} <{places}>, {start}")
        is_seen = text.set(f"and <16 x i1> {is_seen}, {is_inside}")
    hidden = numbers(HIDDEN)
    for head in heads:
        scores = _across(text, quarters[head], "fadd", LANES // KEYS_AT_ONCE)
        scores = text.set(f"select <16 x i1> {is_seen}, {FLOATS} {scores}, {FLOATS} {hidden}")
        text.store(FLOATS, scores, text.at("%out", VECTOR * head))
    text.do("ret void")
    text.raw("}")


def _across(text: Text, vectors: list[str], combine: str, width: int = LANES) -> str:
    """Vectors of runs of `width` lanes, all reduced into one: lane i of a run with lane
    i + width / 2, then i + width / 4 and so on. Of 16 vectors every run becomes a lane."""
    while len(vectors) > 1:
        width //= 2
        pairs = zip(vectors[0::2], vectors[1::2], strict=True)
        vectors = [_halved(text, one, other, width, combine) for one, other in pairs]
    return vectors[0]


def _halved(text: Text, one: str, other: str, width: int, combine: str) -> str:
    """Lanes `width` apart in each run of 2 · width combined, of `one`, then of `other`."""
    runs = range(0, 2 * LANES, 2 * width)
    halves = []
    for start in (0, width):
        lanes = [run + start + lane for run in runs for lane in range(width)]
        mask = ", ".join(f"i32 {lane}" for lane in lanes)
        halves.append(
            text.set(f"shufflevector {FLOATS} {one}, {FLOATS} {other}, <16 x i32> <{mask}>")
        )
    return _combined(text, halves[0], halves[1], combine)


def _combined(text: Text, one: str, other: str, combine: str) -> str:
    if combine == "fadd":
        return text.set(f"fadd {FLOATS} {one}, {other}")
    is_more = text.set(f"fcmp ogt {FLOATS} {one}, {other}")
    return text.set(f"select <16 x i1> {is_more}, {FLOATS} {one}, {FLOATS} {other}")
