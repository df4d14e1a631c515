"""Rounding of rows to 8 bits in LLVM's text."""

from dspark_kernels.cpu.float_text import FLOATS, LANES, MAGIC, MAGIC_BITS, WORDS, numbers
from dspark_kernels.cpu.int8_rows import (
    BIAS,
    GROUP,
    LARGEST_MANTISSA,
    OFFSET,
    RECORD,
    SMALLEST_BITS,
    STEPS_OF_LARGEST,
)
from dspark_kernels.cpu.llvm_text import Loop, Text, constant

INFINITE = 0x7F800000


def write_round_int8(text: Text) -> None:
    """Words: x, out. A unit is a group of a row."""
    text.raw("define void @round_int8(ptr %own, ptr %step, i64 %first, i64 %last) {")
    x, out = text.argument("%own", 0, "ptr"), text.argument("%own", 1, "ptr")
    loop = Loop(text, "%first", "%last")
    source = text.at(x, text.set(f"shl i64 {loop.index}, 7"))
    target = text.at(out, text.set(f"mul i64 {loop.index}, {RECORD}"))
    halves = [text.load(FLOATS, text.at(source, at)) for at in (0, 4 * LANES)]
    round_group_int8(text, halves, target)
    loop.close()
    text.do("ret void")
    text.raw("}")


def write_int8_declarations(text: Text) -> None:
    text.raw(f"declare {WORDS} @llvm.smax.v16i32({WORDS}, {WORDS})")
    text.raw(f"declare i32 @llvm.vector.reduce.smax.v16i32({WORDS})")
    text.raw(f"declare i32 @llvm.vector.reduce.add.v16i32({WORDS})")


def round_group_int8(text: Text, halves: list[str], target: str) -> None:
    """32 numbers to a record of Int8Rows."""
    mask = constant("i32", LANES, 0x7FFFFFFF)
    bits = [text.set(f"bitcast {FLOATS} {half} to {WORDS}") for half in halves]
    sizes = [text.set(f"and {WORDS} {each}, {mask}") for each in bits]
    both = text.set(f"call {WORDS} @llvm.smax.v16i32({WORDS} {sizes[0]}, {WORDS} {sizes[1]})")
    most = text.set(f"call i32 @llvm.vector.reduce.smax.v16i32({WORDS} {both})")
    half_scale, inverse = _scales(text, most)
    spread = text.splat("float", LANES, inverse)
    codes = [_nearest(text, text.set(f"fmul {FLOATS} {half}, {spread}")) for half in halves]
    is_number = text.set(f"icmp slt i32 {most}, {INFINITE}")
    codes = [
        text.set(f"select i1 {is_number}, {WORDS} {each}, {WORDS} zeroinitializer")
        for each in codes
    ]
    for half, each in enumerate(codes):
        bytes_ = text.set(f"trunc {WORDS} {each} to <16 x i8>")
        order = [
            8 * eight + 2 * place + odd for eight in (0, 1) for odd in (0, 1) for place in range(4)
        ]
        places = ", ".join(f"i32 {place}" for place in order)
        stored = text.set(
            f"shufflevector <16 x i8> {bytes_}, <16 x i8> poison, <16 x i32> <{places}>"
        )
        text.store("<16 x i8>", stored, text.at(target, LANES * half))
    total = text.set(f"add {WORDS} {codes[0]}, {codes[1]}")
    total = text.set(f"call i32 @llvm.vector.reduce.add.v16i32({WORDS} {total})")
    text.store("float", half_scale, text.at(target, GROUP))
    text.store("i32", text.set(f"mul i32 {total}, {-OFFSET}"), text.at(target, GROUP + 4))


def _scales(text: Text, most: str) -> tuple[str, str]:
    """Half the scale of a group, and one over it, from the bits of its largest magnitude."""
    mantissa = text.set(f"and i32 {most}, {0x7FFFFF}")
    above = text.set(f"icmp sgt i32 {mantissa}, {LARGEST_MANTISSA}")
    exponent = text.set(f"lshr i32 {most}, 23")
    exponent = text.set(f"add i32 {exponent}, {text.set(f'zext i1 {above} to i32')}")
    exponent = text.set(f"sub i32 {exponent}, {STEPS_OF_LARGEST}")
    half_bits = text.set(f"shl i32 {text.set(f'sub i32 {exponent}, 1')}, 23")
    inverse_bits = text.set(f"shl i32 {text.set(f'sub i32 {2 * BIAS}, {exponent}')}, 23")
    is_small = text.set(f"icmp slt i32 {most}, {SMALLEST_BITS}")
    half, inverse = (
        text.set(f"select i1 {is_small}, i32 0, i32 {each}") for each in (half_bits, inverse_bits)
    )
    half, inverse, largest = (
        text.set(f"bitcast i32 {each} to float") for each in (half, inverse, most)
    )
    nothing = text.set(f"fsub float {largest}, {largest}")  # or NaN
    return text.set(f"fadd float {half}, {nothing}"), inverse


def _nearest(text: Text, x: str) -> str:
    """The nearest whole numbers, even ones of two."""
    moved = text.set(f"fadd {FLOATS} {x}, {numbers(MAGIC)}")
    bits = text.set(f"bitcast {FLOATS} {moved} to {WORDS}")
    return text.set(f"sub {WORDS} {bits}, {constant('i32', LANES, MAGIC_BITS)}")
