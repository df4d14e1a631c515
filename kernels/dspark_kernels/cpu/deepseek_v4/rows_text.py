"""Norms, rotations, rounding and rings of single rows, in LLVM's text."""

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
    minus,
    norm,
    rotate,
    splat,
    split,
    store,
    times,
    turns_of,
)
from dspark_kernels.cpu.float_text import FLOATS, LANES, numbers, write_tree
from dspark_kernels.cpu.llvm_text import Loop, Text, constant
from dspark_kernels.quantized_weight import FP8_MAX

RUN = 64  # numbers of a key that share a scale
SMALLEST_AMAX = 1e-4  # of a run: below it, the power no longer shrinks
MANTISSA, BIAS, EXPONENT = 23, 127, 0x7F800000  # of float32: bits, bias, mask
E4M3_MANTISSA, E4M3_LEAST = 3, -6  # bits, and the exponent of the smallest normal number
INTS = f"<{LANES} x i32>"


def write_norm_rows(text: Text) -> None:
    """Words: x, bytes of a row, out, bytes of a row, weight, chunks of 16, eps, parts of a row. A
    unit is a part: RMSNorm of its own."""
    x, stride, out, out_stride, weight, chunks, eps_bits, parts = begin(
        text, "norm_rows", "p i p i p i i i"
    )
    eps, size = as_float(text, eps_bits), times(text, chunks, CHUNK_BYTES)
    units = Loop(text, "%first", "%last")
    row, part = split(text, units.index, parts)
    inside = times(text, part, size)
    source = text.at(text.at(x, times(text, row, stride)), inside)
    norm(
        text,
        source,
        text.at(text.at(out, times(text, row, out_stride)), inside),
        weight,
        chunks,
        eps,
    )
    units.close()
    end(text)


def write_rotate_rows(text: Text) -> None:
    """Words: x, bytes of a row, parts of a row, bytes of a part, bytes before what turns, chunks
    that turn, number of the word of cos. A unit is a part; in place."""
    x, stride, parts, size, before, chunks, cos_word = begin(text, "rotate_rows", "p i i i i i i")
    turns = turns_of(text, cos_word)
    units = Loop(text, "%first", "%last")
    index, part = split(text, units.index, parts)
    row = Row(text, index)
    place = text.at(text.at(x, times(text, index, stride)), times(text, part, size))
    rotate(text, text.at(place, before), chunks, turns, row.position)
    units.close()
    end(text)


def write_add_by_position(text: Text) -> None:
    """Words: x, bytes of a row, table, chunks of its rows, their number. A unit is a row: x plus
    the table's row at position modulo their number; in place."""
    x, stride, table, chunks, count = begin(text, "add_by_position", "p i p i i")
    size = times(text, chunks, CHUNK_BYTES)
    units = Loop(text, "%first", "%last")
    row = Row(text, units.index)
    place = text.at(x, times(text, units.index, stride))
    added = text.at(table, times(text, text.set(f"urem i64 {row.position}, {count}"), size))
    loop = Loop(text, "0", chunks)
    total = fadd(text, load(text, place, loop.index), load(text, added, loop.index))
    store(text, total, place, loop.index)
    loop.close()
    units.close()
    end(text)


def write_round_e4m3(text: Text) -> None:
    """Words: x, bytes of a row, runs of 64 numbers. A unit is a row: each number of a run to the
    nearest of e4m3 times the run's power of two, the least under which its largest fits; in
    place."""
    x, stride, runs = begin(text, "round_e4m3", "p i i")
    chunks = range(RUN // LANES)
    units = Loop(text, "%first", "%last")
    row = text.at(x, times(text, units.index, stride))
    loop = Loop(text, "0", runs)
    place = text.at(row, times(text, loop.index, 4 * RUN))
    values = [text.load(FLOATS, text.at(place, CHUNK_BYTES * chunk)) for chunk in chunks]
    sizes = [text.set(f"call {FLOATS} @llvm.fabs.v16f32({FLOATS} {value})") for value in values]
    most = numbers(SMALLEST_AMAX)
    for size in sizes:
        more = text.set(f"fcmp ogt {FLOATS} {size}, {most}")
        most = text.set(f"select <{LANES} x i1> {more}, {FLOATS} {size}, {FLOATS} {most}")
    largest = splat(text, write_tree(text, most, "largest"))
    scale = _power_of_two(text, text.set(f"fdiv {FLOATS} {largest}, {numbers(FP8_MAX)}"))
    for chunk, value in zip(chunks, values, strict=True):
        code = text.set(f"fdiv {FLOATS} {value}, {scale}")
        stored = fmul(text, _nearest_e4m3(text, code), scale)
        text.store(FLOATS, stored, text.at(place, CHUNK_BYTES * chunk))
    loop.close()
    units.close()
    end(text)


def _power_of_two(text: Text, x: str) -> str:
    """The least that is not below x."""
    whole = text.set(f"bitcast {FLOATS} {x} to {INTS}")
    above = text.set(f"add {INTS} {whole}, {constant('i32', LANES, (1 << MANTISSA) - 1)}")
    power = text.set(f"and {INTS} {above}, {constant('i32', LANES, EXPONENT)}")
    return text.set(f"bitcast {INTS} {power} to {FLOATS}")


def _nearest_e4m3(text: Text, x: str) -> str:
    """Of numbers up to its largest: added to a number whose last place is x's last in e4m3, and
    taken off again."""
    whole = text.set(f"bitcast {FLOATS} {x} to {INTS}")
    power = text.set(f"and {INTS} {whole}, {constant('i32', LANES, EXPONENT)}")
    least = constant("i32", LANES, (BIAS + E4M3_LEAST) << MANTISSA)
    is_less = text.set(f"icmp slt {INTS} {power}, {least}")
    power = text.set(f"select <{LANES} x i1> {is_less}, {INTS} {least}, {INTS} {power}")
    grown = (MANTISSA - E4M3_MANTISSA << MANTISSA) + (1 << MANTISSA - 1)  # times 1.5
    added = text.set(f"add {INTS} {power}, {constant('i32', LANES, grown)}")
    added = text.set(f"bitcast {INTS} {added} to {FLOATS}")
    total = fadd(text, x, added)
    return text.set(f"fsub {FLOATS} {total}, {added}")


def write_keep_rows(text: Text) -> None:
    """Words: x, bytes of a row, bytes in the rings before this one, its cells, chunks. A unit is a
    row: into its cell, unless a later row of the stretch takes that."""
    x, stride, before, cells, chunks = begin(text, "keep_rows", "p i i i i")
    size = times(text, chunks, CHUNK_BYTES)
    units = Loop(text, "%first", "%last")
    row = Row(text, units.index)
    is_kept = text.set(f"icmp sge i64 {row.position}, {minus(text, row.end, cells)}")
    kept = If(text, is_kept)
    cell = text.set(f"urem i64 {row.position}, {cells}")
    out = text.at(text.at(row.rings, before), times(text, cell, size))
    source = text.at(x, times(text, units.index, stride))
    loop = Loop(text, "0", chunks)
    store(text, load(text, source, loop.index), out, loop.index)
    loop.close()
    kept.close()
    units.close()
    end(text)
