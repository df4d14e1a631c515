"""Which experts DeepSeek-V4's rows take, by expert, and their sum, in LLVM's text."""

from dspark_kernels.cpu.deepseek_v4.text import (
    CHUNK_BYTES,
    If,
    Row,
    as_float,
    begin,
    end,
    fadd,
    fmul,
    load,
    plus,
    splat,
    store,
    times,
)
from dspark_kernels.cpu.float_text import FLOATS, LANES, number, numbers, write_exp
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text
from dspark_kernels.cpu.mxfp4 import SEGMENT_WORDS

SHARES = 256  # units in which a layer's experts are shared out
NEVER_ZERO = 1e-20
LOGARITHM = [1.0 / (2 * k + 1) for k in range(6, -1, -1)]  # of artanh, by squares
EXPERT_WORDS = 6  # addresses: codes and scales of gate, up and down
LOWEST = number(float("-inf"))


def write_route_rows(text: Text) -> None:
    """Words: logits [N, 2 E], E a multiple of 16, biases or 0, experts by token int64 [V, k] or 0,
    chunks of E, experts, k, scale of the shares, experts out int64 [N, k], shares out [N, k]. A
    unit is a row: its k best by score and bias, or those of its token; shares are of the scores
    alone. Logits become scores, and ranks behind them."""
    words = begin(text, "route_rows", "p p p i i i i p p")
    logits, biases, by_token, chunks, count, top, scale, experts_out, shares_out = words
    scale, has_table = as_float(text, scale), text.set(f"icmp ne ptr {by_token}, null")
    has_biases = text.set(f"icmp ne ptr {biases}, null")
    searched = text.set(f"select i1 {has_table}, i64 0, i64 {count}")
    found = text.set("alloca i64, align 8")
    size = times(text, chunks, CHUNK_BYTES)
    units = Loop(text, "%first", "%last")
    row = Row(text, units.index)
    scores = text.at(logits, times(text, times(text, units.index, size), 2))
    ranks = text.at(scores, size)
    loop = Loop(text, "0", chunks)
    score = _score(text, load(text, scores, loop.index))
    store(text, score, scores, loop.index)
    ranked = If(text, has_biases)
    store(text, fadd(text, score, load(text, biases, loop.index)), ranks, loop.index)
    ranked.close()
    loop.close()
    first = times(text, times(text, units.index, top), 4)
    experts = text.at(experts_out, times(text, first, 2))
    shares = text.at(shares_out, first)
    places = Loop(text, "0", top, [Carried("float", number(0.0))])
    text.store("i64", _best(text, ranks, searched), found)
    listed = text.at(
        by_token, times(text, plus(text, times(text, row.token, top), places.index), 8)
    )
    source = text.set(f"select i1 {has_table}, ptr {listed}, ptr {found}")
    expert = text.load("i64", source, 8)
    text.store("i64", expert, text.at(experts, times(text, places.index, 8)))
    mine = text.load("float", text.at(scores, times(text, expert, 4)))
    text.store("float", mine, text.at(shares, times(text, places.index, 4)))
    gone = If(text, has_biases)
    text.store("float", LOWEST, text.at(ranks, times(text, expert, 4)))
    gone.close()
    total = places.close([text.set(f"fadd float {places.values[0]}, {mine}")])[0]
    total = text.set(f"fadd float {total}, {number(NEVER_ZERO)}")
    over = Loop(text, "0", top)
    place = text.at(shares, times(text, over.index, 4))
    share = text.set(f"fdiv float {text.load('float', place)}, {total}")
    text.store("float", text.set(f"fmul float {share}, {scale}"), place)
    over.close()
    units.close()
    end(text)


def write_group_experts(text: Text) -> None:
    """Words: experts int64 [N, k], experts of the layer, k, their addresses int64 [E, 6], segments
    of gate and up, segments of down, their number out, places out int64 [N, k], rows out int64
    [N * k], 0, 1, 2, ... int64, products of gate and up, bytes of a row, products of down, bytes
    of a row, scratch int64 [E]. One unit: pairs of row and expert in the order of the experts, and
    what mxfp4_counted reads of them."""
    words = begin(text, "group_experts", "p i i p p p p p p p p i p i p")
    experts, count, top, addresses, opening, closing, number_out, places, rows = words[:9]
    own, gate_up, gate_up_bytes, said, said_bytes, scratch = words[9:]
    pairs = times(text, text.load("i64", "%step", 8), top)

    def place(base: str, index: str) -> str:
        return text.at(base, times(text, index, 8))

    clear = Loop(text, "0", count)
    text.store("i64", "0", place(scratch, clear.index))
    clear.close()
    counted = Loop(text, "0", pairs)
    at = place(scratch, text.load("i64", place(experts, counted.index), 8))
    text.store("i64", plus(text, text.load("i64", at, 8), 1), at)
    counted.close()
    inner = text.set(f"udiv i64 {gate_up_bytes}, 2")
    loop = Loop(text, "0", count, [Carried("i64", "0"), Carried("i64", "0")])
    start, segments = loop.values
    at = place(scratch, loop.index)
    mine = text.load("i64", at, 8)
    text.store("i64", start, at)
    is_some = text.set(f"icmp sgt i64 {mine}, 0")
    some = If(text, is_some)
    expert = text.at(addresses, times(text, loop.index, 8 * EXPERT_WORDS))
    parts = [text.argument(expert, index) for index in range(EXPERT_WORDS)]
    row_list, own_list = (text.set(f"ptrtoint ptr {place(b, start)} to i64") for b in (rows, own))
    first = text.set(f"ptrtoint ptr {text.at(gate_up, times(text, start, gate_up_bytes))} to i64")
    last = text.set(f"ptrtoint ptr {text.at(said, times(text, start, said_bytes))} to i64")
    two = times(text, segments, 2)
    _segment(text, opening, two, [*parts[:2], row_list, mine, first])
    _segment(
        text, opening, plus(text, two, 1), [*parts[2:4], row_list, mine, plus(text, first, inner)]
    )
    _segment(text, closing, segments, [*parts[4:], own_list, mine, last])
    some.close()
    more = plus(text, segments, text.set(f"zext i1 {is_some} to i64"))
    segments = loop.close([plus(text, start, mine), more])[1]
    text.store("i64", segments, number_out)
    sort = Loop(text, "0", pairs)
    at = place(scratch, text.load("i64", place(experts, sort.index), 8))
    target = text.load("i64", at, 8)
    text.store("i64", plus(text, target, 1), at)
    text.store("i64", target, place(places, sort.index))
    text.store("i64", text.set(f"udiv i64 {sort.index}, {top}"), place(rows, target))
    sort.close()
    end(text)


def write_mxfp4_counted(text: Text) -> None:
    """Words: those of mxfp4, then where the number of segments is, segments for each of those. A
    unit is one of SHARES equal parts of what there is to do."""
    words = begin(text, "mxfp4_counted", "p p i i i p i")
    tiles, number_at, each = words[3], words[5], words[6]
    units = times(text, times(text, text.load("i64", number_at, 8), each), tiles)
    ends = [
        text.set(f"udiv i64 {times(text, units, bound)}, {SHARES}") for bound in ("%first", "%last")
    ]
    text.do(f"call void @mxfp4(ptr %own, ptr %step, i64 {ends[0]}, i64 {ends[1]})")
    end(text)


def write_gated(text: Text) -> None:
    """Words: gate, up, out, all float32 [N, chunks * 16], limit. A unit is a chunk: silu(min(gate,
    limit)) * clamp(up), in float32."""
    gate, up, out, limit = begin(text, "gated", "p p p i")
    high = splat(text, as_float(text, limit))
    low = text.set(f"fneg {FLOATS} {high}")
    units = Loop(text, "%first", "%last")
    gates, ups = (load(text, each, units.index) for each in (gate, up))
    gates, ups = (_chosen(text, "ogt", each, high) for each in (gates, ups))
    ups = _chosen(text, "olt", ups, low)
    power = write_exp(text, text.set(f"fneg {FLOATS} {gates}"))
    divided = text.set(f"fdiv {FLOATS} {gates}, {fadd(text, power, numbers(1.0))}")
    store(text, fmul(text, divided, ups), out, units.index)
    units.close()
    end(text)


def write_add_experts(text: Text) -> None:
    """Words: what the shared expert says [N, H], what pairs of row and expert say, bytes of a row,
    places int64 [N, k], shares [N, k], k, chunks. A unit is a row: the shared one, then the others
    in the order of the route, each by fma with its share; in place."""
    out, said, size, places, shares, top, chunks = begin(text, "add_experts", "p p i p p i i")
    units = Loop(text, "%first", "%last")
    target = text.at(out, times(text, units.index, size))
    first = times(text, units.index, top)
    over = Loop(text, "0", chunks)
    total = load(text, target, over.index)
    loop = Loop(text, "0", top, [Carried(FLOATS, total)])
    pair = plus(text, first, loop.index)
    place = text.load("i64", text.at(places, times(text, pair, 8)), 8)
    share = splat(text, text.load("float", text.at(shares, times(text, pair, 4))))
    part = load(text, text.at(said, times(text, place, size)), over.index)
    total = loop.close([text.fma(LANES, part, share, loop.values[0])])[0]
    store(text, total, target, over.index)
    over.close()
    units.close()
    end(text)


def _chosen(text: Text, order: str, x: str, limit: str) -> str:
    """The limit where x is beyond it; of a NaN, the NaN."""
    beyond = text.set(f"fcmp {order} {FLOATS} {x}, {limit}")
    return text.set(f"select <{LANES} x i1> {beyond}, {FLOATS} {limit}, {FLOATS} {x}")


def _best(text: Text, ranks: str, count: str) -> str:
    """The first of the highest."""
    loop = Loop(text, "0", count, [Carried("float", LOWEST), Carried("i64", "0")])
    rank = text.load("float", text.at(ranks, times(text, loop.index, 4)))
    is_more = text.set(f"fcmp ogt float {rank}, {loop.values[0]}")
    values = [("float", rank, loop.values[0]), ("i64", loop.index, loop.values[1])]
    chosen = [text.set(f"select i1 {is_more}, {k} {new}, {k} {old}") for k, new, old in values]
    return loop.close(chosen)[1]


def _score(text: Text, x: str) -> str:
    """sqrt(softplus(x)): the larger of x and 0, plus log(1 + t) of t = exp(-|x|), which is twice
    the artanh of t / (2 + t)."""
    minus_x = text.set(f"fneg {FLOATS} {x}")
    zero = numbers(0.0)
    is_positive = text.set(f"fcmp ogt {FLOATS} {x}, {zero}")
    mask = f"select <{LANES} x i1> {is_positive}, {FLOATS}"
    size = text.set(f"{mask} {minus_x}, {FLOATS} {x}")
    positive = text.set(f"{mask} {x}, {FLOATS} {zero}")
    power = write_exp(text, size)
    part = text.set(f"fdiv {FLOATS} {power}, {fadd(text, power, numbers(2.0))}")
    square = fmul(text, part, part)
    total = numbers(LOGARITHM[0])
    for term in LOGARITHM[1:]:
        total = text.fma(LANES, total, square, numbers(term))
    twice = fmul(text, fadd(text, part, part), total)
    softplus = fadd(text, positive, twice)
    return text.set(f"call {FLOATS} @llvm.sqrt.v16f32({FLOATS} {softplus})")


def _segment(text: Text, table: str, index: str, values: list[str]) -> None:
    place = text.at(table, times(text, index, 8 * SEGMENT_WORDS))
    for word, value in enumerate(values):
        text.store("i64", value, text.at(place, 8 * word))
