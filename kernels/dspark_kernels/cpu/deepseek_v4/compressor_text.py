"""Windows of raw rows to compressed entries, in LLVM's text."""

from dspark_kernels.cpu.deepseek_v4.text import (
    CHUNK_BYTES,
    If,
    Row,
    as_float,
    begin,
    end,
    entry_at,
    fadd,
    minus,
    norm,
    plus,
    rotate,
    row_at,
    step_word_at,
    store,
    times,
    turns_of,
)
from dspark_kernels.cpu.float_text import FLOATS, LANES, number, write_exp
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text


def write_close_windows(text: Text) -> None:
    """Words: raw rows [N, 2, columns], values and gates, bytes of a row, bytes in the rings before
    this one, its cells, chunks of an entry, ratio, halves of a row's columns (2 where windows
    overlap), weight of the norm, eps, number of the word of the pages' half, bytes before the
    entries of a page, chunks that turn, number of the word of cos.

    A unit is a row: if it closes a window, the window's entry is written. Of overlapping windows
    the first half is of the window before.
    """
    words = begin(text, "close_windows", "p i i i i i i p i i i i i")
    raw, stride, ring_at, cells, chunks, ratio, halves, weight, eps, half_word, before = words[:11]
    turn_chunks, turns = words[11], turns_of(text, words[12])
    half = text.at(step_word_at(text, half_word), before)
    width = times(text, chunks, CHUNK_BYTES)
    own_half = times(text, width, minus(text, halves, 1))  # bytes before a window's own columns
    gate_at = times(text, width, halves)
    eps = as_float(text, eps)
    units = Loop(text, "%first", "%last")
    row = Row(text, units.index)
    following = plus(text, row.position, 1)
    closes = If(text, text.set(f"icmp eq i64 {text.set(f'urem i64 {following}, {ratio}')}, 0"))
    window = text.set(f"udiv i64 {row.position}, {ratio}")
    begins = times(text, window, ratio)
    has_before = text.set(f"icmp sgt i64 {window}, 0")
    overlapped = times(text, minus(text, halves, 1), ratio)
    overlapped = text.set(f"select i1 {has_before}, i64 {overlapped}, i64 0")
    slots = plus(text, overlapped, ratio)
    first_position = minus(text, begins, overlapped)
    out = entry_at(text, row, window, half, ratio, width)
    ring = text.at(row.rings, ring_at)

    def slot(index: str, at: str) -> tuple[str, str]:
        """Values and gates of 16 channels of a slot."""
        position = plus(text, first_position, index)
        place = row_at(text, row, position, raw, stride, ring, cells, times(text, gate_at, 2))
        is_own = text.set(f"icmp sge i64 {index}, {overlapped}")
        skipped = text.set(f"select i1 {is_own}, i64 {own_half}, i64 0")
        values = text.at(text.at(place, skipped), at)
        return values, text.at(values, gate_at)

    channels = Loop(text, "0", chunks, [Carried(FLOATS, "zeroinitializer")])
    at = times(text, channels.index, CHUNK_BYTES)
    lowest = "<" + ", ".join([f"float {number(float('-inf'))}"] * LANES) + ">"
    most = Loop(text, "0", slots, [Carried(FLOATS, lowest)])
    gates = text.load(FLOATS, slot(most.index, at)[1])
    is_more = text.set(f"fcmp ogt {FLOATS} {gates}, {most.values[0]}")
    more = f"select <{LANES} x i1> {is_more}, {FLOATS} {gates}, {FLOATS} {most.values[0]}"
    highest = most.close([text.set(more)])[0]
    zeros = [Carried(FLOATS, "zeroinitializer")] * 2
    weighed = Loop(text, "0", slots, zeros)
    values_at, gates_at = slot(weighed.index, at)
    power = text.set(f"fsub {FLOATS} {text.load(FLOATS, gates_at)}, {highest}")
    power = write_exp(text, power)
    share = fadd(text, weighed.values[0], power)
    total = text.fma(LANES, power, text.load(FLOATS, values_at), weighed.values[1])
    share, total = weighed.close([share, total])
    entry = text.set(f"fdiv {FLOATS} {total}, {share}")
    store(text, entry, out, channels.index)
    squares = channels.close([text.fma(LANES, entry, entry, channels.values[0])])[0]
    norm(text, out, out, weight, chunks, eps, squares)
    fixed = times(text, minus(text, chunks, turn_chunks), CHUNK_BYTES)
    rotate(text, text.at(out, fixed), turn_chunks, turns, begins)
    closes.close()
    units.close()
    end(text)
