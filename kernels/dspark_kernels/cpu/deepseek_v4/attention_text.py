"""DeepSeek-V4's attention in LLVM's text: keys that all heads share and that are values as well,
first those of the window, then compressed entries."""

from dspark_kernels.cpu.deepseek_v4.text import (
    CHUNK_BYTES,
    Row,
    as_float,
    begin,
    end,
    fmul,
    load,
    minus,
    plus,
    rotate,
    splat,
    split,
    step_word,
    step_word_at,
    store,
    times,
    turns_of,
)
from dspark_kernels.cpu.float_text import FLOATS, LANES, number, write_exp, write_tree
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text

HEADS = 4  # of a unit
BLOCK = 64  # keys between two looks at the largest score
TOGETHER = 2  # keys scored at once, and chunks of values added up at once
LOWEST = f"float {number(float('-inf'))}"


def write_latent_attend(text: Text) -> None:
    """Words: queries [N, heads * D], bytes of a row, keys of the pass [N, D], bytes in the rings
    before this one, its cells, chunks of D, groups of HEADS heads, sinks [heads], out as
    queries, scale, ratio (0: no entries), number of the word of the pages' half, bytes before the
    entries of a page, chosen entries int64 [N, top] or 0, top, chunks that turn, number of the word
    of cos.

    A unit is a group of heads of a row. Softmax over blocks of keys in order, beginning with the
    sink; what comes out is turned back by the row's own angle.
    """
    _Attention(text).write()


class _Attention:
    def __init__(self, text: Text) -> None:
        self._text = text

    def write(self) -> None:
        text = self._text
        _write_key_at(text)
        words = begin(text, "latent_attend", "p i p i i i i p p i i i i p i i i")
        queries, stride, self._keys, ring_at, self._cells, self._chunks = words[:6]
        groups, sinks, outs, scale, self._ratio, half_word, before, chosen, top = words[6:15]
        turn_chunks, turns = words[15], turns_of(text, words[16])
        self._scale = as_float(text, scale)
        self._size = times(text, self._chunks, CHUNK_BYTES)
        self._addresses = text.set(f"alloca [{BLOCK} x ptr], align 64")
        self._scores = text.set(f"alloca [{HEADS * BLOCK} x float], align 64")
        units = Loop(text, "%first", "%last")
        index, group = split(text, units.index, groups)
        row = self._row = Row(text, index)
        self._half = text.at(step_word_at(text, half_word), before)
        self._ring = text.at(row.rings, ring_at)
        following, self._oldest = plus(text, row.position, 1), row.oldest
        self._recent = minus(text, row.seen, row.oldest)
        some = text.set(f"call i64 @llvm.smax.i64(i64 {self._ratio}, i64 1)")
        visible = text.set(f"udiv i64 {following}, {some}")
        has_entries = text.set(f"icmp sgt i64 {self._ratio}, 0")
        visible = text.set(f"select i1 {has_entries}, i64 {visible}, i64 0")
        is_chosen = text.set(f"icmp sgt i64 {visible}, {top}")
        entries = text.set(f"select i1 {is_chosen}, i64 {top}, i64 {visible}")
        mine = text.at(chosen, times(text, times(text, index, top), 8))
        self._chosen = text.set(f"select i1 {is_chosen}, ptr {mine}, ptr null")
        total = plus(text, self._recent, entries)
        inside = times(text, times(text, group, HEADS), self._size)
        place = plus(text, times(text, index, stride), inside)
        self._queries = self._by_head(text.at(queries, place))
        self._outs = self._by_head(text.at(outs, place))
        for out in self._outs:
            clear = Loop(text, "0", self._chunks)
            store(text, "zeroinitializer", out, clear.index)
            clear.close()
        first_sink = text.at(sinks, times(text, group, 4 * HEADS))
        largest = [text.load("float", text.at(first_sink, 4 * head)) for head in range(HEADS)]
        start = [Carried("float", each) for each in largest]
        start += [Carried("float", number(1.0))] * HEADS
        blocks = Loop(text, "0", total, start, step=str(BLOCK))
        left = minus(text, total, blocks.index)
        count = text.set(f"call i64 @llvm.smin.i64(i64 {left}, i64 {BLOCK})")
        self._find(blocks.index, count)
        self._score(count)
        state = self._add(count, blocks.values[:HEADS], blocks.values[HEADS:])
        state = blocks.close(state)
        fixed = times(text, minus(text, self._chunks, turn_chunks), CHUNK_BYTES)
        for out, shares in zip(self._outs, state[HEADS:], strict=True):
            whole = splat(text, shares)
            over = Loop(text, "0", self._chunks)
            divided = text.set(f"fdiv {FLOATS} {load(text, out, over.index)}, {whole}")
            store(text, divided, out, over.index)
            over.close()
            rotate(text, text.at(out, fixed), turn_chunks, turns, row.position, -1.0)
        units.close()
        end(text)

    def _by_head(self, first: str) -> list[str]:
        text = self._text
        return [text.at(first, times(text, self._size, head)) for head in range(HEADS)]

    def _find(self, first: str, count: str) -> None:
        """Where the keys of a block are."""
        text, row = self._text, self._row
        loop = Loop(text, "0", count)
        index = plus(text, first, loop.index)
        place = self._key_at(row, index)
        text.store("ptr", place, text.at(self._addresses, times(text, loop.index, 8)))
        loop.close()

    def _key_at(self, row: Row, index: str) -> str:
        text = self._text
        page_bytes = step_word(text, "page_bytes")
        facts = f"i64 {self._recent}, i64 {self._oldest}, i64 {row.start}, i64 {row.first}"
        here = f"ptr {self._keys}, ptr {self._ring}, i64 {self._cells}, i64 {self._size}"
        pages = f"ptr {row.pages}, ptr {self._half}, i64 {page_bytes}, i64 {self._ratio}"
        return text.set(
            f"call ptr @key_at(i64 {index}, {facts}, {here}, {pages}, ptr {self._chosen})"
        )

    def _address(self, index: str) -> str:
        text = self._text
        return text.load("ptr", text.at(self._addresses, times(text, index, 8)), 8)

    def _score_at(self, head: int, index: str) -> str:
        text = self._text
        return text.at(self._scores, plus(text, times(text, index, 4), 4 * BLOCK * head))

    def _score(self, count: str) -> None:
        """Scores of a block's keys; none of those that it lacks."""
        text = self._text
        for chunk in range(HEADS * BLOCK // LANES):
            lowest = "<" + ", ".join([LOWEST] * LANES) + ">"
            text.store(FLOATS, lowest, text.at(self._scores, CHUNK_BYTES * chunk), 64)
        last = minus(text, count, 1)
        pairs = Loop(text, "0", count, step=str(TOGETHER))
        places = [plus(text, pairs.index, i) for i in range(TOGETHER)]
        places = [text.set(f"call i64 @llvm.smin.i64(i64 {p}, i64 {last})") for p in places]
        keys = [self._address(place) for place in places]
        zeros = [Carried(FLOATS, "zeroinitializer")] * (HEADS * TOGETHER)
        chunks = Loop(text, "0", self._chunks, zeros)
        loaded = [load(text, key, chunks.index) for key in keys]
        sums = []
        for head, query in enumerate(self._queries):
            values = load(text, query, chunks.index)
            for which, key in enumerate(loaded):
                before = chunks.values[head * TOGETHER + which]
                sums.append(text.fma(LANES, values, key, before))
        sums = chunks.close(sums)
        for position, total in enumerate(sums):  # the last key again, if it stands alone
            head, which = divmod(position, TOGETHER)
            score = text.set(f"fmul float {write_tree(text, total)}, {self._scale}")
            text.store("float", score, self._score_at(head, places[which]))
        pairs.close()

    def _add(self, count: str, largest: list[str], shares: list[str]) -> list[str]:
        """Takes a block up; the largest scores and sums of shares so far."""
        text = self._text
        news, kept, totals = [], [], []
        for head in range(HEADS):
            base = text.at(self._scores, 4 * BLOCK * head)
            parts = [text.at(base, CHUNK_BYTES * part) for part in range(BLOCK // LANES)]
            most = text.load(FLOATS, parts[0])
            for part in parts[1:]:
                other = text.load(FLOATS, part)
                more = text.set(f"fcmp ogt {FLOATS} {other}, {most}")
                most = text.set(f"select <{LANES} x i1> {more}, {FLOATS} {other}, {FLOATS} {most}")
            found = write_tree(text, most, "largest")
            more = text.set(f"fcmp ogt float {found}, {largest[head]}")
            new = text.set(f"select i1 {more}, float {found}, float {largest[head]}")
            wide = splat(text, new)
            total = "zeroinitializer"
            for part in parts:
                power = text.set(f"fsub {FLOATS} {text.load(FLOATS, part)}, {wide}")
                power = write_exp(text, power)
                text.store(FLOATS, power, part)
                total = text.set(f"fadd {FLOATS} {total}, {power}")
            less = text.set(f"fsub {FLOATS} {splat(text, largest[head])}, {wide}")
            factor = write_exp(text, less)
            single = text.set(f"extractelement {FLOATS} {factor}, i64 0")
            before = text.set(f"fmul float {shares[head]}, {single}")
            totals.append(text.set(f"fadd float {before}, {write_tree(text, total)}"))
            news.append(new)
            kept.append(factor)
        self._add_values(count, kept)
        return [*news, *totals]

    def _add_values(self, count: str, factors: list[str]) -> None:
        text = self._text
        chunks = Loop(text, "0", self._chunks, step=str(TOGETHER))
        places = [chunks.index, *(plus(text, chunks.index, i) for i in range(1, TOGETHER))]
        start = [
            Carried(FLOATS, fmul(text, load(text, out, place), factors[head]))
            for head, out in enumerate(self._outs)
            for place in places
        ]
        keys = Loop(text, "0", count, start)
        key = self._address(keys.index)
        values = [load(text, key, place) for place in places]
        sums = []
        for head in range(HEADS):
            share = splat(text, text.load("float", self._score_at(head, keys.index)))
            for which, value in enumerate(values):
                before = keys.values[head * TOGETHER + which]
                sums.append(text.fma(LANES, share, value, before))
        sums = keys.close(sums)
        for position, total in enumerate(sums):
            head, which = divmod(position, TOGETHER)
            store(text, total, self._outs[head], places[which])
        chunks.close()


def _write_key_at(text: Text) -> None:
    """key_at: of a row's keys by number, its window first."""
    text.raw(
        "define internal ptr @key_at(i64 %index, i64 %recent, i64 %oldest, i64 %start, i64 %first, "
        "ptr %keys, ptr %ring, i64 %cells, i64 %size, ptr %pages, ptr %half, i64 %page_bytes, "
        "i64 %ratio, ptr %chosen) {"
    )
    is_recent = text.set("icmp slt i64 %index, %recent")
    text.do(f"br i1 {is_recent}, label %recent_key, label %compressed")
    text.label("recent_key")
    position = text.set("add i64 %oldest, %index")
    place = text.set(
        f"call ptr @row_at(i64 {position}, i64 %start, i64 %first, ptr %keys, i64 %size, "
        "ptr %ring, i64 %cells, i64 %size)"
    )
    text.do(f"ret ptr {place}")
    text.label("compressed")
    entry = text.set("sub i64 %index, %recent")
    has_choice = text.set("icmp ne ptr %chosen, null")
    text.do(f"br i1 {has_choice}, label %choice, label %all")
    call = (
        "call ptr @entry_at(i64 {}, ptr %pages, ptr %half, i64 %page_bytes, i64 %ratio, i64 %size)"
    )
    text.label("choice")
    selected = text.load("i64", text.at("%chosen", text.set(f"shl i64 {entry}, 3")), 8)
    text.do(f"ret ptr {text.set(call.format(selected))}")
    text.label("all")
    text.do(f"ret ptr {text.set(call.format(entry))}")
    text.raw("}")
