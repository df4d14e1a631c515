"""Operations of decoders with routed experts, in LLVM's text; `reference` beside this has those of
gpt-oss and Qwen3-MoE in torch."""

from collections.abc import Callable
from functools import partial

from dspark_kernels.cpu.deepseek_v4.routing_text import write_group_experts, write_mxfp4_counted
from dspark_kernels.cpu.deepseek_v4.rows_text import write_norm_rows
from dspark_kernels.cpu.deepseek_v4.text import (
    CHUNK_BYTES,
    If,
    as_float,
    begin,
    end,
    fadd,
    fmul,
    load,
    plus,
    splat,
    split,
    store,
    times,
)
from dspark_kernels.cpu.float_text import (
    FLOATS,
    LANES,
    number,
    numbers,
    write_declarations,
    write_exp,
    write_tree,
)
from dspark_kernels.cpu.int8_rows import GROUP, RECORD
from dspark_kernels.cpu.int8_rows_text import round_group_int8, write_int8_declarations
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text
from dspark_kernels.cpu.moe.reference import ALPHA
from dspark_kernels.cpu.mxfp4_text import write_mxfp4

LOWEST = number(float("-inf"))
EVEN, ODD = range(0, 2 * LANES, 2), range(1, 2 * LANES, 2)


def write_add_bias(text: Text) -> None:
    """Words: x, bytes of a row, bias, chunks of 16. A unit is a row; in place."""
    x, stride, bias, chunks = begin(text, "add_bias", "p i p i")
    units = Loop(text, "%first", "%last")
    row = text.at(x, times(text, units.index, stride))
    loop = Loop(text, "0", chunks)
    store(
        text, fadd(text, load(text, row, loop.index), load(text, bias, loop.index)), row, loop.index
    )
    loop.close()
    units.close()
    end(text)


def write_add_rows(text: Text) -> None:
    """Words: total [N, H], what is added [N, H], its bias, chunks. A unit is a row; in place."""
    total, update, bias, chunks = begin(text, "add_rows", "p p p i")
    size = times(text, chunks, CHUNK_BYTES)
    units = Loop(text, "%first", "%last")
    target, source = (text.at(base, times(text, units.index, size)) for base in (total, update))
    loop = Loop(text, "0", chunks)
    added = fadd(text, load(text, source, loop.index), load(text, bias, loop.index))
    store(text, fadd(text, load(text, target, loop.index), added), target, loop.index)
    loop.close()
    units.close()
    end(text)


def write_softmax_route(text: Text) -> None:
    """Words: logits [N, E] in whole chunks, bias [E] (minus infinity beyond the experts), chunks,
    experts, k, whether shares are of all experts, experts out int64 [N, k], shares out [N, k]. A
    unit is a row; of equal logits the first wins. Logits are overwritten."""
    words = begin(text, "softmax_route", "p p i i i i p p")
    logits, bias, chunks, count, top, of_all, experts_out, shares_out = words
    size = times(text, chunks, CHUNK_BYTES)
    units = Loop(text, "%first", "%last")
    scores = text.at(logits, times(text, units.index, size))
    biased = Loop(text, "0", chunks)
    score = fadd(text, load(text, scores, biased.index), load(text, bias, biased.index))
    store(text, score, scores, biased.index)
    biased.close()
    most = text.load("float", text.at(scores, times(text, _best(text, scores, count), 4)))
    high = splat(text, most)
    summed = Loop(text, "0", chunks, [Carried(FLOATS, numbers(0.0))])
    below = text.set(f"fsub {FLOATS} {load(text, scores, summed.index)}, {high}")
    whole = summed.close([fadd(text, summed.values[0], write_exp(text, below))])[0]
    first = times(text, times(text, units.index, top), 4)
    experts = text.at(experts_out, times(text, first, 2))
    shares = text.at(shares_out, first)
    places = Loop(text, "0", top, [Carried("float", number(0.0))])
    expert = _best(text, scores, count)
    text.store("i64", expert, text.at(experts, times(text, places.index, 8)))
    place = text.at(scores, times(text, expert, 4))
    below = text.set(f"fsub float {text.load('float', place)}, {most}")
    text.store("float", LOWEST, place)
    power = write_exp(text, splat(text, below))
    mine = text.set(f"extractelement {FLOATS} {power}, i64 0")
    text.store("float", mine, text.at(shares, times(text, places.index, 4)))
    chosen = places.close([text.set(f"fadd float {places.values[0]}, {mine}")])[0]
    is_all = text.set(f"icmp ne i64 {of_all}, 0")
    total = text.set(f"select i1 {is_all}, float {write_tree(text, whole)}, float {chosen}")
    over = Loop(text, "0", top)
    place = text.at(shares, times(text, over.index, 4))
    text.store("float", text.set(f"fdiv float {text.load('float', place)}, {total}"), place)
    over.close()
    units.close()
    end(text)


def write_gated(text: Text, name: str, *, is_oss: bool, rounds: bool) -> None:
    """Words: products of gate and up [N * k, 2 I], places int64 [N, k], experts int64 [N, k],
    biases [E, 2 I], out (Int8Rows or [N * k, I]), groups of 32, limit. A unit is a group of a pair
    of row and expert. gpt-oss's gate and up take turns, have biases and are clamped; others are
    halves."""
    words = begin(text, name, "p p p p p i i")
    products, places, experts, biases, out, groups, limit = words
    high = splat(text, as_float(text, limit))
    size = times(text, groups, 8 * GROUP)
    units = Loop(text, "%first", "%last")
    pair, group = split(text, units.index, groups)
    listed = times(text, pair, 8)
    place = text.load("i64", text.at(places, listed), 8)
    source = text.at(products, times(text, place, size))
    bias = text.at(biases, times(text, text.load("i64", text.at(experts, listed), 8), size))
    values = []
    for half in (0, 1):
        if is_oss:
            begun = plus(text, times(text, group, 8 * GROUP), half * 2 * CHUNK_BYTES)
            values.append(_oss_gated(text, text.at(source, begun), text.at(bias, begun), high))
        else:
            gate_at = text.at(source, plus(text, times(text, group, 4 * GROUP), half * CHUNK_BYTES))
            gate = text.load(FLOATS, gate_at)
            up = text.load(FLOATS, text.at(gate_at, text.set(f"lshr i64 {size}, 1")))
            values.append(fmul(text, _swished(text, gate, gate), up))
    index = plus(text, times(text, place, groups), group)
    if rounds:
        round_group_int8(text, values, text.at(out, times(text, index, RECORD)))
    else:
        target = text.at(out, times(text, index, 4 * GROUP))
        for half, value in enumerate(values):
            text.store(FLOATS, value, text.at(target, half * CHUNK_BYTES))
    units.close()
    end(text)


def _oss_gated(text: Text, source: str, bias: str, high: str) -> str:
    """Of 32 numbers by turns, gate first."""
    pairs = []
    for half in (0, CHUNK_BYTES):
        pairs.append(
            fadd(text, *(text.load(FLOATS, text.at(base, half)) for base in (source, bias)))
        )
    gate, up = (_every_other(text, pairs[0], pairs[1], order) for order in (EVEN, ODD))
    gate, up = (_beyond(text, "ogt", each, high) for each in (gate, up))
    up = _beyond(text, "olt", up, text.set(f"fneg {FLOATS} {high}"))
    swished = _swished(text, gate, fmul(text, gate, numbers(ALPHA)))
    return fmul(text, fadd(text, up, numbers(1.0)), swished)


def _swished(text: Text, x: str, scaled: str) -> str:
    """x / (1 + exp(-scaled))."""
    power = write_exp(text, text.set(f"fneg {FLOATS} {scaled}"))
    return text.set(f"fdiv {FLOATS} {x}, {fadd(text, power, numbers(1.0))}")


def _every_other(text: Text, one: str, other: str, order: range) -> str:
    places = ", ".join(f"i32 {place}" for place in order)
    return text.set(f"shufflevector {FLOATS} {one}, {FLOATS} {other}, <{LANES} x i32> <{places}>")


def _beyond(text: Text, order: str, x: str, limit: str) -> str:
    """The limit where x is beyond it; of a NaN, the NaN."""
    beyond = text.set(f"fcmp {order} {FLOATS} {x}, {limit}")
    return text.set(f"select <{LANES} x i1> {beyond}, {FLOATS} {limit}, {FLOATS} {x}")


def write_add_routed(text: Text, name: str, *, has_bias: bool) -> None:
    """Words: total [N, H], what pairs of row and expert say, chunks, places int64 [N, k], experts
    int64 [N, k], shares [N, k], k, biases [E, H], tap, bytes of its rows. A unit is a row: the
    experts in the order of the route, each by fma with its share, added to the total in place and
    told to the tap if there is one."""
    words = begin(text, name, "p p i p p p i p p i")
    total, said, chunks, places, experts, shares, top, biases, tap, tap_bytes = words
    size, has_tap = times(text, chunks, CHUNK_BYTES), text.set(f"icmp ne ptr {tap}, null")
    units = Loop(text, "%first", "%last")
    target = text.at(total, times(text, units.index, size))
    first = times(text, units.index, top)
    over = Loop(text, "0", chunks)
    loop = Loop(text, "0", top, [Carried(FLOATS, numbers(0.0))])
    pair = plus(text, first, loop.index)
    listed = times(text, pair, 8)
    place = text.load("i64", text.at(places, listed), 8)
    part = load(text, text.at(said, times(text, place, size)), over.index)
    if has_bias:
        expert = text.load("i64", text.at(experts, listed), 8)
        part = fadd(text, part, load(text, text.at(biases, times(text, expert, size)), over.index))
    share = splat(text, text.load("float", text.at(shares, times(text, pair, 4))))
    update = loop.close([text.fma(LANES, part, share, loop.values[0])])[0]
    result = fadd(text, load(text, target, over.index), update)
    store(text, result, target, over.index)
    tapped = If(text, has_tap)
    store(text, result, text.at(tap, times(text, units.index, tap_bytes)), over.index)
    tapped.close()
    over.close()
    units.close()
    end(text)


def _best(text: Text, scores: str, count: str) -> str:
    """The first of the highest."""
    loop = Loop(text, "0", count, [Carried("float", LOWEST), Carried("i64", "0")])
    score = text.load("float", text.at(scores, times(text, loop.index, 4)))
    is_more = text.set(f"fcmp ogt float {score}, {loop.values[0]}")
    values = [("float", score, loop.values[0]), ("i64", loop.index, loop.values[1])]
    chosen = [text.set(f"select i1 {is_more}, {k} {new}, {k} {old}") for k, new, old in values]
    return loop.close(chosen)[1]


WRITERS: dict[str, Callable[[Text], None]] = {
    "norm_rows": write_norm_rows,
    "group_experts": write_group_experts,
    "mxfp4_counted": write_mxfp4_counted,
    "add_bias": write_add_bias,
    "add_rows": write_add_rows,
    "softmax_route": write_softmax_route,
    "oss_gated": partial(write_gated, name="oss_gated", is_oss=True, rounds=False),
    "oss_gated_int8": partial(write_gated, name="oss_gated_int8", is_oss=True, rounds=True),
    "halves_gated": partial(write_gated, name="halves_gated", is_oss=False, rounds=False),
    "add_routed": partial(write_add_routed, name="add_routed", has_bias=False),
    "add_routed_biased": partial(write_add_routed, name="add_routed_biased", has_bias=True),
}


def moe_text(variant: str) -> str:
    text = Text()
    for write in WRITERS.values():
        write(text)
    write_mxfp4(text, variant)
    write_declarations(text)
    write_int8_declarations(text)
    return str(text)
