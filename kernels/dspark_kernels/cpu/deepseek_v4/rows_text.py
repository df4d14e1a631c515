"""Norms, rotations and rings of single rows, in LLVM's text."""

from dspark_kernels.cpu.deepseek_v4.text import (
    CHUNK_BYTES,
    If,
    Row,
    as_float,
    begin,
    end,
    fadd,
    load,
    minus,
    norm,
    rotate,
    split,
    store,
    times,
    turns_of,
)
from dspark_kernels.cpu.llvm_text import Loop, Text


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
