"""Rows of a stored weight as float32: ((code - offset) · factor) + least, each step rounded."""

import torch

from dspark_kernels.cpu.float_text import FLOATS, LANES, WORDS
from dspark_kernels.cpu.formats import FORMATS, Format
from dspark_kernels.cpu.llvm_text import Loop, Text, constant
from dspark_kernels.cpu.runtime import Op, current
from dspark_kernels.cpu.step_words import index_of, token_words
from dspark_kernels.cpu.stored_weight import PLANES, StoredWeight

EIGHT, FOUR = "<8 x i32>", "<4 x i32>"


def embed(weight: StoredWeight, token_ids: torch.Tensor) -> torch.Tensor:
    """token_ids int64 [N] -> float32 [N, K]. Raises ValueError for an id that has no row."""
    step = token_words(token_ids, weight.num_outputs)
    runtime = current()
    if runtime is None:
        return embed_reference(weight, token_ids)
    out = torch.empty(len(token_ids), weight.width)
    runtime.run([embed_op(weight, out)], len(token_ids), step)
    return out


def embed_op(weight: StoredWeight, out: torch.Tensor) -> Op:
    """As embed, as an operation of a Program."""
    planes = [plane if plane.numel() else 0 for plane in weight.planes()]
    words = (out, 4 * out.stride(0), weight.width // 32, *planes)
    return Op(f"embed_{weight.kind}", 0, 1, words)


def embed_reference(weight: StoredWeight, token_ids: torch.Tensor) -> torch.Tensor:
    """As embed, in torch."""
    return weight.rows(token_ids)


def write_embed(text: Text, kind: str) -> None:
    """A unit is a row."""
    form = FORMATS[kind]
    text.raw(f"define void @embed_{kind}(ptr %own, ptr %step, i64 %first, i64 %last) {{")
    out, stride = text.argument("%own", 0, "ptr"), text.argument("%own", 1)
    groups = text.argument("%own", 2)
    planes = {p: text.argument("%own", 3 + i, "ptr") for i, p in enumerate(PLANES)}
    tokens = text.argument("%step", index_of("tokens"), "ptr")
    rows = Loop(text, "%first", "%last")
    token = text.load("i64", text.at(tokens, text.set(f"shl i64 {rows.index}, 3")), 8)
    block, lane = text.set(f"lshr i64 {token}, 4"), text.set(f"and i64 {token}, {LANES - 1}")
    target = text.at(out, text.set(f"mul i64 {rows.index}, {stride}"))
    first = text.set(f"mul i64 {block}, {groups}")
    loop = Loop(text, "0", groups)
    entry = text.set(f"add i64 {first}, {loop.index}")
    place = text.at(target, text.set(f"shl i64 {loop.index}, 7"))
    halves = _codes(text, form, planes, entry, lane)
    least = _least(text, form, planes, entry, lane) if form.has_least else None
    for half, codes in enumerate(halves):
        part = half if form.parts == 2 else 0
        factor = _factor(text, form, planes, entry, lane, part)
        value = text.set(f"fmul {FLOATS} {codes}, {text.splat('float', LANES, factor)}")
        if least is not None:
            value = text.set(f"fadd {FLOATS} {value}, {text.splat('float', LANES, least)}")
        text.store(FLOATS, value, text.at(place, 64 * half))
    loop.close()
    rows.close()
    text.do("ret void")
    text.raw("}")


def _codes(text: Text, form: Format, planes: dict[str, str], entry: str, lane: str) -> list[str]:
    """The group's 32 codes less their offset, as two vectors of floats."""

    def words(plane: str, count: int) -> list[str]:
        base = text.at(planes[plane], text.set(f"mul i64 {entry}, {64 * count}"))
        base = text.at(base, text.set(f"shl i64 {lane}, 2"))
        return [text.load("i32", text.at(base, 64 * index)) for index in range(count)]

    low = words("low", form.low_bits)
    if form.low_bits == 4:
        fifteen = constant("i32", 4, 0x0F0F0F0F)
        four = _gathered(text, FOUR, low)
        even = text.set(f"and {FOUR} {four}, {fifteen}")
        moved = text.set(f"lshr {FOUR} {four}, {constant('i32', 4, 4)}")
        odd = text.set(f"and {FOUR} {moved}, {fifteen}")
        order = ", ".join(f"i32 {quad // 2 + 4 * (quad % 2)}" for quad in range(8))
        codes = text.set(f"shufflevector {FOUR} {even}, {FOUR} {odd}, {EIGHT} <{order}>")
    else:
        codes = _gathered(text, EIGHT, low)
    if form.high_bits:
        per_word = 8 // form.high_bits
        found = words("high", form.high_bits)
        high = _gathered(text, EIGHT, [found[quad // per_word] for quad in range(8)])
        shifts = ", ".join(f"i32 {quad % per_word * form.high_bits}" for quad in range(8))
        high = text.set(f"lshr {EIGHT} {high}, <{shifts}>")
        mask = constant("i32", 8, ((1 << form.high_bits) - 1) * 0x01010101)
        high = text.set(f"and {EIGHT} {high}, {mask}")
        high = text.set(f"shl {EIGHT} {high}, {constant('i32', 8, 4)}")
        codes = text.set(f"or {EIGHT} {codes}, {high}")
    inputs = text.set(f"bitcast {EIGHT} {codes} to <32 x i8>")
    return [_half(text, inputs, half, form.offset) for half in (0, 1)]


def _gathered(text: Text, kind: str, words: list[str]) -> str:
    whole = "poison"
    for index, word in enumerate(words):
        whole = text.set(f"insertelement {kind} {whole}, i32 {word}, i64 {index}")
    return whole


def _half(text: Text, inputs: str, half: int, offset: int) -> str:
    order = ", ".join(f"i32 {16 * half + index}" for index in range(16))
    bytes_ = text.set(f"shufflevector <32 x i8> {inputs}, <32 x i8> poison, {WORDS} <{order}>")
    codes = text.set(f"zext <16 x i8> {bytes_} to {WORDS}")
    codes = text.set(f"sub {WORDS} {codes}, {constant('i32', LANES, offset)}")
    return text.set(f"sitofp {WORDS} {codes} to {FLOATS}")


def _half_number(text: Text, plane: str, entry: str, lane: str) -> str:
    index = text.set(f"add i64 {text.set(f'shl i64 {entry}, 4')}, {lane}")
    number = text.load("half", text.at(plane, text.set(f"shl i64 {index}, 1")))
    return text.set(f"fpext half {number} to float")


def _small_number(text: Text, plane: str, entry: str, lane: str, widen: str) -> str:
    index = text.set(f"add i64 {text.set(f'shl i64 {entry}, 4')}, {lane}")
    number = text.set(f"{widen} i8 {text.load('i8', text.at(plane, index))} to i32")
    return text.set(f"sitofp i32 {number} to float")


def _factor(
    text: Text, form: Format, planes: dict[str, str], entry: str, lane: str, part: int
) -> str:
    if not form.is_super:
        return _half_number(text, planes["factors"], entry, lane)
    widen = "sext" if form.parts == 2 else "zext"
    whole = text.set(f"add i64 {text.set(f'mul i64 {entry}, {form.parts}')}, {part}")
    small = _small_number(text, planes["factors"], whole, lane, widen)
    over = _half_number(text, planes["super_factors"], text.set(f"lshr i64 {entry}, 3"), lane)
    return text.set(f"fmul float {small}, {over}")


def _least(text: Text, form: Format, planes: dict[str, str], entry: str, lane: str) -> str:
    if not form.is_super:
        return _half_number(text, planes["leasts"], entry, lane)
    small = _small_number(text, planes["leasts"], entry, lane, "zext")
    over = _half_number(text, planes["super_leasts"], text.set(f"lshr i64 {entry}, 3"), lane)
    return text.set(f"fneg float {text.set(f'fmul float {small}, {over}')}")
