"""Rounding of rows in LLVM's text; `round_row` serves every operation that ends with it."""

from typing import NamedTuple

from dspark_kernels.cpu.float_text import (
    FLOATS,
    LANES,
    MAGIC,
    MAGIC_BITS,
    WORDS,
    number,
    numbers,
)
from dspark_kernels.cpu.llvm_text import Loop, Text, constant
from dspark_kernels.cpu.rounded import BYTE, CODE_BYTES, FIELD_BYTES, GROUP_BYTES, LARGEST

TINIEST = 27 << 23  # bits of 2**-100


def write_round_rows(text: Text) -> None:
    """Words: x, out, groups."""
    text.raw("define void @round_rows(ptr %own, ptr %step, i64 %first, i64 %last) {")
    x, out = text.argument("%own", 0, "ptr"), text.argument("%own", 1, "ptr")
    groups = text.argument("%own", 2)
    rows = text.load("i64", "%step", 8)
    loop = Loop(text, "%first", "%last")
    stride = text.set(f"shl i64 {groups}, 7")
    source = text.at(x, text.set(f"mul i64 {loop.index}, {stride}"))
    text.do(
        f"call void @round_row(ptr {source}, ptr {out}, i64 {groups}, i64 {loop.index}, i64 {rows})"
    )
    loop.close()
    text.do("ret void")
    text.raw("}")


def write_round_row(text: Text) -> None:
    """round_row(x of the row, rounded rows, groups, row, number of rows)."""
    text.raw(
        "define internal void @round_row(ptr %x, ptr %out, i64 %groups, i64 %row, i64 %rows) {"
    )
    place = write_place(text, "%out", "%groups", "%row", "%rows")
    loop = Loop(text, "0", "%groups")
    source = text.at("%x", text.set(f"shl i64 {loop.index}, 7"))
    halves = [text.load(FLOATS, text.at(source, at)) for at in (0, 64)]
    round_group(text, halves, place, loop.index)
    loop.close()
    text.do("ret void")
    text.raw("}")


def write_round_declarations(text: Text) -> None:
    text.raw("declare i64 @llvm.smin.i64(i64, i64)")
    text.raw("declare i64 @llvm.smax.i64(i64, i64)")
    text.raw(f"declare {WORDS} @llvm.smax.v16i32({WORDS}, {WORDS})")
    text.raw(f"declare i32 @llvm.vector.reduce.smax.v16i32({WORDS})")
    text.raw(f"declare i32 @llvm.vector.reduce.add.v16i32({WORDS})")


class RowPlace(NamedTuple):
    """Of a row: the addresses of its first group, and the rows of its tile."""

    codes: str
    fields: str
    tile: str


def write_place(text: Text, out: str, groups: str, row: str, rows: str) -> RowPlace:
    first = text.set(f"and i64 {row}, -8")
    left = text.set(f"sub i64 {rows}, {first}")
    tile = text.set(f"call i64 @llvm.smin.i64(i64 {left}, i64 8)")
    inside = text.set(f"and i64 {row}, 7")
    before = text.set(f"mul i64 {text.set(f'mul i64 {first}, {GROUP_BYTES}')}, {groups}")
    base = text.at(out, before)
    size = text.set(f"mul i64 {text.set(f'mul i64 {tile}, {CODE_BYTES}')}, {groups}")
    codes = text.at(base, text.set(f"mul i64 {inside}, {CODE_BYTES}"))
    fields = text.at(text.at(base, size), text.set(f"mul i64 {inside}, {FIELD_BYTES}"))
    return RowPlace(codes, fields, tile)


def round_group(text: Text, halves: list[str], place: RowPlace, group: str) -> None:
    """32 numbers to this group of a row."""
    mask = constant("i32", LANES, 0x7FFFFFFF)
    bits = [text.set(f"bitcast {FLOATS} {half} to {WORDS}") for half in halves]
    sizes = [text.set(f"and {WORDS} {each}, {mask}") for each in bits]
    both = text.set(f"call {WORDS} @llvm.smax.v16i32({WORDS} {sizes[0]}, {WORDS} {sizes[1]})")
    most = text.set(f"call i32 @llvm.vector.reduce.smax.v16i32({WORDS} {both})")
    largest = text.set(f"bitcast i32 {most} to float")
    is_small = text.set(f"icmp slt i32 {most}, {TINIEST}")
    scale, inverse = (
        text.set(f"select i1 {is_small}, float 0.0, float {text.set(f'fdiv float {pair}')}")
        for pair in (f"{largest}, 127.0", f"127.0, {largest}")
    )
    nothing = text.set(f"fsub float {largest}, {largest}")  # or NaN
    scale = text.set(f"fadd float {scale}, {nothing}")
    scale = text.set(f"fmul float {scale}, {number(2.0**-BYTE)}")
    codes = [_codes(text, half, text.splat("float", LANES, inverse)) for half in halves]
    before = text.set(f"mul i64 {group}, {place.tile}")
    target = text.at(place.codes, text.set(f"mul i64 {before}, {CODE_BYTES}"))
    for half, two in enumerate(codes):
        for byte, each in enumerate(two):
            short = text.set(f"trunc {WORDS} {each} to <16 x i8>")
            text.store("<16 x i8>", short, text.at(target, 32 * byte + 16 * half))
    sums = [_total(text, *two) for two in codes]
    total = text.set(f"add i32 {sums[0]}, {sums[1]}")
    scaled = text.set(f"fmul float {scale}, {text.set(f'sitofp i32 {total} to float')}")
    sums = [text.set(f"mul i32 {each}, -8") for each in (total, sums[0])]
    target = text.at(place.fields, text.set(f"mul i64 {before}, {FIELD_BYTES}"))
    fields = (("float", scale), ("i32", sums[0]), ("float", scaled), ("i32", sums[1]))
    for index, (kind, value) in enumerate(fields):
        text.store(kind, value, text.at(target, 4 * index))


def _total(text: Text, first: str, second: str) -> str:
    """Of 16 codes, given as their bytes."""
    moved = text.set(f"shl {WORDS} {first}, {constant('i32', LANES, BYTE)}")
    codes = text.set(f"add {WORDS} {moved}, {second}")
    return text.set(f"call i32 @llvm.vector.reduce.add.v16i32({WORDS} {codes})")


def _codes(text: Text, half: str, inverse: str) -> tuple[str, str]:
    """<16 x i32> each: rounded to nearest even, and what that leaves over in 256ths."""
    scaled = text.set(f"fmul {FLOATS} {half}, {inverse}")
    first, rounded = _nearest(text, scaled)
    left = text.set(f"fsub {FLOATS} {scaled}, {rounded}")
    left = text.set(f"fmul {FLOATS} {left}, {numbers(2.0**BYTE)}")
    for order, end in (("ogt", LARGEST), ("olt", -LARGEST)):
        beyond = text.set(f"fcmp {order} {FLOATS} {left}, {numbers(end)}")
        left = text.set(f"select <16 x i1> {beyond}, {FLOATS} {numbers(end)}, {FLOATS} {left}")
    return first, _nearest(text, left)[0]


def _nearest(text: Text, x: str) -> tuple[str, str]:
    """The nearest whole numbers, even ones of two, as integers and as floats."""
    moved = text.set(f"fadd {FLOATS} {x}, {numbers(MAGIC)}")
    bits = text.set(f"bitcast {FLOATS} {moved} to {WORDS}")
    whole = text.set(f"sub {WORDS} {bits}, {constant('i32', LANES, MAGIC_BITS)}")
    return whole, text.set(f"fsub {FLOATS} {moved}, {numbers(MAGIC)}")
