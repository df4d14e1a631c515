"""Which compressed entries a row of DeepSeek-V4 attends to, in LLVM's text."""

from dspark_kernels.cpu.deepseek_v4.text import (
    CHUNK_BYTES,
    If,
    Row,
    as_float,
    begin,
    end,
    entry_at,
    load,
    plus,
    split,
    step_word,
    step_word_at,
    times,
)
from dspark_kernels.cpu.float_text import FLOATS, LANES, number, write_tree
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text

PARTS = 16  # of a row's entries, each a unit of work
HEADS = 4  # scored together


def write_index_scores(text: Text) -> None:
    """Words: queries [N, heads * D], bytes of a row, weights of heads, bytes of a row, chunks of D,
    groups of HEADS heads, scale, ratio, top, number of the word of the pages' half, bytes before
    the entries of a page. A unit is a part of a row's entries; none of a row that sees no more than
    `top`. Scores go to the step's own memory."""
    words = begin(text, "index_scores", "p i p i i i i i i i i")
    queries, stride, weights, weight_stride, chunks, groups, scale, ratio, top = words[:9]
    half = text.at(step_word_at(text, words[9]), words[10])
    size, scale = times(text, chunks, CHUNK_BYTES), as_float(text, scale)
    units = Loop(text, "%first", "%last")
    index, part = split(text, units.index, str(PARTS))
    row = Row(text, index)
    visible = text.set(f"udiv i64 {plus(text, row.position, 1)}, {ratio}")
    selects = If(text, text.set(f"icmp sgt i64 {visible}, {top}"))
    ends = [
        text.set(f"udiv i64 {times(text, visible, bound)}, {PARTS}")
        for bound in (part, plus(text, part, 1))
    ]
    scores = _scores_of(text, index)
    query, share = (
        text.at(base, times(text, index, each))
        for base, each in ((queries, stride), (weights, weight_stride))
    )
    entries = Loop(text, ends[0], ends[1])
    key = entry_at(text, row, entries.index, half, ratio, size)
    heads = Loop(text, "0", groups, [Carried("float", number(0.0))])
    first = times(text, heads.index, HEADS)
    mine = [text.at(query, times(text, plus(text, first, head), size)) for head in range(HEADS)]
    dots = Loop(text, "0", chunks, [Carried(FLOATS, "zeroinitializer")] * HEADS)
    values = load(text, key, dots.index)
    products = dots.close(
        [
            text.fma(LANES, load(text, each, dots.index), values, before)
            for each, before in zip(mine, dots.values, strict=True)
        ]
    )
    total = heads.values[0]
    for head, product in enumerate(products):
        dot = write_tree(text, product)
        positive = text.set(f"fcmp ogt float {dot}, {number(0.0)}")
        dot = text.set(f"select i1 {positive}, float {dot}, float {number(0.0)}")
        dot = text.set(f"fmul float {dot}, {scale}")
        place = text.at(share, times(text, plus(text, first, head), 4))
        weighed = text.set(f"fmul float {dot}, {text.load('float', place)}")
        total = text.set(f"fadd float {total}, {weighed}")
    total = heads.close([total])[0]
    text.store("float", total, text.at(scores, times(text, entries.index, 4)))
    entries.close()
    selects.close()
    units.close()
    end(text)


def write_index_choose(text: Text) -> None:
    """Words: out int64 [N, top], ratio, top. A unit is a row that sees more than `top` entries: the
    ones with the highest scores, in ascending order; of equal ones the first."""
    out, ratio, top = begin(text, "index_choose", "p i i")
    units = Loop(text, "%first", "%last")
    row = Row(text, units.index)
    visible = text.set(f"udiv i64 {plus(text, row.position, 1)}, {ratio}")
    selects = If(text, text.set(f"icmp sgt i64 {visible}, {top}"))
    scores = _scores_of(text, units.index)
    least = _least(text, scores, visible, top)
    above = _count(text, scores, visible, plus(text, least, 1))
    equal = text.set(f"sub i64 {top}, {above}")
    target = text.at(out, times(text, times(text, units.index, top), 8))
    loop = Loop(text, "0", visible, [Carried("i64", "0"), Carried("i64", equal)])
    taken, left = loop.values
    rank = _rank(text, scores, loop.index)
    is_above = text.set(f"icmp sgt i64 {rank}, {least}")
    is_equal = text.set(f"icmp eq i64 {rank}, {least}")
    is_wanted = text.set(f"and i1 {is_equal}, {text.set(f'icmp sgt i64 {left}, 0')}")
    is_taken = text.set(f"or i1 {is_above}, {is_wanted}")
    takes = If(text, is_taken)
    text.store("i64", loop.index, text.at(target, times(text, taken, 8)))
    takes.close()
    taken = plus(text, taken, text.set(f"zext i1 {is_taken} to i64"))
    left = text.set(f"sub i64 {left}, {text.set(f'zext i1 {is_wanted} to i64')}")
    loop.close([taken, left])
    selects.close()
    units.close()
    end(text)


def _scores_of(text: Text, row: str) -> str:
    size = step_word(text, "scores_bytes")
    return text.at(step_word(text, "scores", "ptr"), times(text, row, size))


def _rank(text: Text, scores: str, entry: str) -> str:
    """A whole number that is ordered as the scores are."""
    found = text.load("i32", text.at(scores, times(text, entry, 4)))
    flipped = text.set(f"and i32 {text.set(f'ashr i32 {found}, 31')}, {0x7FFFFFFF}")
    return text.set(f"sext i32 {text.set(f'xor i32 {found}, {flipped}')} to i64")


def _count(text: Text, scores: str, visible: str, least: str) -> str:
    """Entries whose rank is `least` or more."""
    loop = Loop(text, "0", visible, [Carried("i64", "0")])
    is_more = text.set(f"icmp sge i64 {_rank(text, scores, loop.index)}, {least}")
    more = plus(text, loop.values[0], text.set(f"zext i1 {is_more} to i64"))
    return loop.close([more])[0]


def _least(text: Text, scores: str, visible: str, top: str) -> str:
    """The highest rank that `top` entries or more reach, by halving."""
    ends = [Carried("i64", str(-(2**31))), Carried("i64", str(2**31))]
    loop = Loop(text, "0", "32", ends)
    low, high = loop.values
    middle = text.set(f"ashr i64 {plus(text, low, high)}, 1")
    found = _count(text, scores, visible, middle)
    is_enough = text.set(f"icmp sge i64 {found}, {top}")
    low = text.set(f"select i1 {is_enough}, i64 {middle}, i64 {low}")
    high = text.set(f"select i1 {is_enough}, i64 {high}, i64 {middle}")
    return loop.close([low, high])[0]
