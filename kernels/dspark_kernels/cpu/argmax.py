"""The largest of each row, the first of equals; a NaN is above everything, as in torch."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from dspark_kernels.cpu.float_text import FLOATS, LANES, WORDS
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text, constant
from dspark_kernels.cpu.runtime import Op, running

LOGITS_WORD = 0  # of argmax_op's words
LEAST = -(2**31)
INFINITY = 0x7F800000  # as `write_key` orders floats; below minus this lies minus infinity
MINUS_INFINITY = INFINITY ^ -1


class Largest(NamedTuple):
    """int64 [N] each: where a row is largest, and 1 if a token can come of it: if its largest is
    neither NaN nor infinite."""

    place: torch.Tensor
    is_sound: torch.Tensor


def argmax(logits: torch.Tensor) -> Largest:
    """logits [N, V]; by our kernel if the kernels run here already, else by torch."""
    is_ours = logits.device.type == "cpu" and logits.dtype == torch.float32
    runtime = running() if is_ours and logits.stride(1) == 1 else None
    if runtime is None:
        return argmax_reference(logits)
    out = Largest(*torch.empty(2, len(logits), dtype=torch.int64))
    runtime.run([argmax_op(logits, out)], len(logits))
    return out


def argmax_op(logits: torch.Tensor, out: Largest) -> Op:
    """As argmax, as an operation of a Program."""
    words = (logits, 4 * logits.stride(0), logits.shape[1], *out)
    return Op("argmax", 0, 1, words)


def argmax_reference(logits: torch.Tensor) -> Largest:
    """As argmax, in torch."""
    return Largest(logits.argmax(-1), logits.amax(-1).isfinite().long())


def write_argmax(text: Text) -> None:
    text.raw("define void @argmax(ptr %own, ptr %step, i64 %first, i64 %last) {")
    logits, stride = text.argument("%own", 0, "ptr"), text.argument("%own", 1)
    count, out = text.argument("%own", 2), text.argument("%own", 3, "ptr")
    sound = text.argument("%own", 4, "ptr")
    rows = Loop(text, "%first", "%last")
    source = text.at(logits, text.set(f"mul i64 {rows.index}, {stride}"))
    top, found = write_largest(text, count, lambda kind, at: text.load(kind, text.at(source, at)))
    offset = text.set(f"shl i64 {rows.index}, 3")
    text.store("i64", text.set(f"zext i32 {found} to i64"), text.at(out, offset))
    bounds = [text.set(f"icmp slt i32 {top}, {INFINITY}")]
    bounds += [text.set(f"icmp sgt i32 {top}, {MINUS_INFINITY}")]
    is_finite = text.set(f"and i1 {bounds[0]}, {bounds[1]}")
    text.store("i64", text.set(f"zext i1 {is_finite} to i64"), text.at(sound, offset))
    rows.close()
    text.do("ret void")
    text.raw("}")
    text.raw(f"declare i32 @llvm.vector.reduce.smin.v16i32({WORDS})")


def write_largest(text: Text, count: str, value_at: Callable[[str, str], str]) -> tuple[str, str]:
    """Of `count` floats: the largest's key, as `write_key`, and its place, both i32.

    value_at(kind, offset in bytes) writes how 16 of them or one are read.
    """
    whole = text.set(f"and i64 {count}, -{LANES}")
    least = constant("i32", LANES, LEAST)
    start = [Carried(WORDS, least), Carried(WORDS, constant("i32", LANES, 0))]
    loop = Loop(text, "0", whole, start, str(LANES))
    value = value_at(FLOATS, text.set(f"shl i64 {loop.index}, 2"))
    key = write_key(text, value, FLOATS, WORDS)
    best, place = loop.values
    is_more = text.set(f"icmp sgt {WORDS} {key}, {best}")
    lanes = ", ".join(f"i32 {lane}" for lane in range(LANES))
    base = text.splat("i32", LANES, text.set(f"trunc i64 {loop.index} to i32"))
    here = text.set(f"add {WORDS} {base}, <{lanes}>")
    best, place = loop.close(
        [
            text.set(f"select <16 x i1> {is_more}, {WORDS} {key}, {WORDS} {best}"),
            text.set(f"select <16 x i1> {is_more}, {WORDS} {here}, {WORDS} {place}"),
        ]
    )
    top = text.set(f"call i32 @llvm.vector.reduce.smax.v16i32({WORDS} {best})")
    is_top = text.set(f"icmp eq {WORDS} {best}, {text.splat('i32', LANES, top)}")
    far = constant("i32", LANES, 2**31 - 1)
    places = text.set(f"select <16 x i1> {is_top}, {WORDS} {place}, {WORDS} {far}")
    first = text.set(f"call i32 @llvm.vector.reduce.smin.v16i32({WORDS} {places})")
    rest = Loop(text, whole, count, [Carried("i32", top), Carried("i32", first)])
    value = value_at("float", text.set(f"shl i64 {rest.index}, 2"))
    key = write_key(text, value, "float", "i32")
    is_more = text.set(f"icmp sgt i32 {key}, {rest.values[0]}")
    here = text.set(f"trunc i64 {rest.index} to i32")
    top, found = rest.close(
        [
            text.set(f"select i1 {is_more}, i32 {key}, i32 {rest.values[0]}"),
            text.set(f"select i1 {is_more}, i32 {here}, i32 {rest.values[1]}"),
        ]
    )
    return top, found


def write_key(text: Text, value: str, floats: str, words: str) -> str:
    """Floats as whole numbers of the same order, +0 and -0 the same, a NaN the largest."""
    is_vector = floats == FLOATS

    def number(value: int) -> str:
        return constant("i32", LANES, value) if is_vector else str(value)

    zero = "zeroinitializer" if is_vector else "0.0"
    value = text.set(f"fadd {floats} {value}, {zero}")  # -0 + 0 is 0
    bits = text.set(f"bitcast {floats} {value} to {words}")
    signs = text.set(f"ashr {words} {bits}, {number(31)}")
    turned = text.set(f"and {words} {signs}, {number(2**31 - 1)}")
    key = text.set(f"xor {words} {bits}, {turned}")
    is_nan = text.set(f"fcmp uno {floats} {value}, {value}")
    mask = "<16 x i1>" if is_vector else "i1"
    return text.set(f"select {mask} {is_nan}, {words} {number(2**31 - 1)}, {words} {key}")
