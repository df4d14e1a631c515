"""Rows of float32 times weights in the bytes of their file, in LLVM's text."""

from collections.abc import Callable, Iterator, Sequence

from dspark_kernels.cpu.file_weight import PACKINGS, Kind
from dspark_kernels.cpu.float_matrix import OUTPUTS, SHARES
from dspark_kernels.cpu.float_text import FLOATS, LANES, numbers, write_declarations, write_tree
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text, constant
from dspark_kernels.cpu.mxfp4 import SEGMENT_WORDS

ROWS = {16: (6, 4, 2, 1), 8: (2, 1), 4: (1,)}  # together, by how many floats a register holds
TOGETHER = {16: 4, 8: 2, 4: 2}  # outputs
REGISTER = {"amx": 16, "vnni512": 16, "avxvnni": 8, "avx2": 8, "neon": 4, "generic": 4}
SHORTS = f"<{LANES} x i16>"
PANEL = 32  # rows that meet all outputs before the next ones, so that they stay in the core's cache
MANY = 12  # rows of a panel for which codes become floats once, and not once for each few of them
MOST_CHUNKS = 32  # of a block, for that
ROW_BYTES = 4 * LANES


def float_matrix_text(kind: Kind, variant: str, *, is_counted: bool = False) -> str:
    """The text of `floats_{kind}`, whose words are those of multiply_floats_op, or of
    `floats_counted_{kind}`, whose are those of counted_floats_op."""
    text, lanes = Text(), REGISTER[variant]
    if is_counted:
        _write_counted(text, kind, lanes)
    else:
        _write_whole(text, kind, lanes)
    write_declarations(text)
    text.raw("declare i64 @llvm.smin.i64(i64, i64)")
    text.raw("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
    return str(text)


def _write_whole(text: Text, kind: Kind, lanes: int) -> None:
    text.raw(f"define void @floats_{kind}(ptr %own, ptr %step, i64 %first, i64 %last) {{")
    unpacked = _Unpacked(text, kind, TOGETHER[lanes]) if PACKINGS[kind].bits == 8 else None
    x_stride, out_stride = text.argument("%own", 1), text.argument("%own", 3)
    codes, scales = text.argument("%own", 4, "ptr"), text.argument("%own", 6, "ptr")
    rows = text.load("i64", "%step", 8)
    panels = Loop(text, "0", rows, step=str(PANEL))
    left = text.set(f"sub i64 {rows}, {panels.index}")
    count = text.set(f"call i64 @llvm.smin.i64(i64 {left}, i64 {PANEL})")
    x, out = (
        text.at(text.argument("%own", word, "ptr"), text.set(f"mul i64 {panels.index}, {stride}"))
        for word, stride in ((0, x_stride), (2, out_stride))
    )
    units = Loop(text, "%first", "%last")

    def place(row: str) -> str:
        return text.at(x, text.set(f"mul i64 {row}, {x_stride}"))

    _write_unit(text, kind, lanes, units.index, (codes, scales), count, place, out, unpacked)
    units.close()
    panels.close()
    text.do("ret void")
    text.raw("}")


def _write_counted(text: Text, kind: Kind, lanes: int) -> None:
    """A unit is one of SHARES equal parts of the outputs of all segments."""
    text.raw(f"define void @floats_counted_{kind}(ptr %own, ptr %step, i64 %first, i64 %last) {{")
    x, x_stride = text.argument("%own", 0, "ptr"), text.argument("%own", 1)
    table, number_at = text.argument("%own", 2, "ptr"), text.argument("%own", 4, "ptr")
    more = text.set(f"add i64 {text.argument('%own', 11)}, {OUTPUTS - 1}")
    each = text.set(f"udiv i64 {more}, {OUTPUTS}")
    number = text.set(f"mul i64 {text.load('i64', number_at, 8)}, {text.argument('%own', 6)}")
    units = text.set(f"mul i64 {number}, {each}")
    first, last = (
        text.set(f"udiv i64 {text.set(f'mul i64 {units}, {bound}')}, {SHARES}")
        for bound in ("%first", "%last")
    )
    loop = Loop(text, first, last)
    segment = text.set(f"mul i64 {text.set(f'udiv i64 {loop.index}, {each}')}, {8 * SEGMENT_WORDS}")
    own = text.at(table, segment)
    codes, scales, listed = (text.argument(own, index, "ptr") for index in range(3))
    rows, out = text.argument(own, 3), text.argument(own, 4, "ptr")
    unit = text.set(f"urem i64 {loop.index}, {each}")

    def place(row: str) -> str:
        its = text.load("i64", text.at(listed, text.set(f"shl i64 {row}, 3")), 8)
        return text.at(x, text.set(f"mul i64 {its}, {x_stride}"))

    _write_unit(text, kind, lanes, unit, (codes, scales), rows, place, out)
    loop.close()
    text.do("ret void")
    text.raw("}")


def _write_unit(
    text: Text,
    kind: Kind,
    lanes: int,
    unit: str,
    weight: tuple[str, str],
    rows: str,
    place: Callable[[str], str],
    out: str,
    unpacked: "_Unpacked | None" = None,
) -> None:
    """OUTPUTS outputs of all rows; `place` of a row's numbers, `weight` by codes and scales."""
    out_stride = text.argument("%own", 3)
    few = unpacked.split(rows) if unpacked else rows
    for begin in range(0, OUTPUTS, TOGETHER[lanes]):
        numbers_of = range(begin, begin + TOGETHER[lanes])
        outputs = [_output(text, kind, unit, number, weight) for number in numbers_of]
        for tile in _tiles(text, few, ROWS[lanes]):
            outs = [text.at(out, text.set(f"mul i64 {row}, {out_stride}")) for row in tile]
            _tile(text, kind, [place(row) for row in tile], outs, outputs)
        if unpacked:
            unpacked.multiply(place, (out, out_stride), (few, rows), outputs, ROWS[lanes])


def _tiles(text: Text, rows: str, counts: Sequence[int]) -> Iterator[list[str]]:
    """All rows, the largest of `counts` at a time; what the caller writes for each tile is in its
    loop."""
    start = "0"
    for count in counts:
        left = text.set(f"sub i64 {rows}, {start}")
        whole = text.set(f"sub i64 {left}, {text.set(f'urem i64 {left}, {count}')}")
        stop = text.set(f"add i64 {start}, {whole}")
        tiles = Loop(text, start, stop, step=str(count))
        yield [text.set(f"add i64 {tiles.index}, {index}") for index in range(count)]
        tiles.close()
        start = stop


class _Output:
    """One row of the weight: its number, its codes and its scales."""

    def __init__(self, number: str, codes: str, scales: str) -> None:
        self.number, self.codes, self.scales = number, codes, scales


def _output(text: Text, kind: Kind, unit: str, place: int, weight: tuple[str, str]) -> _Output:
    """Of a unit; the last output again where the weight has no more."""
    most = text.set(f"sub i64 {text.argument('%own', 11)}, 1")
    wanted = text.set(f"add i64 {text.set(f'mul i64 {unit}, {OUTPUTS}')}, {place}")
    number = text.set(f"call i64 @llvm.smin.i64(i64 {wanted}, i64 {most})")
    row_bytes = text.argument("%own", 5)
    codes = text.at(weight[0], text.set(f"mul i64 {number}, {row_bytes}"))
    if not PACKINGS[kind].exponent:
        return _Output(number, codes, "null")
    block = text.set(f"udiv i64 {number}, {text.argument('%own', 8)}")
    inside = text.set(f"mul i64 {block}, {text.argument('%own', 7)}")
    return _Output(number, codes, text.at(weight[1], inside))


def _tile(
    text: Text, kind: Kind, xs: Sequence[str], outs: Sequence[str], outputs: Sequence[_Output]
) -> None:
    """Some rows times some outputs."""
    pairs = [(row, output) for row in range(len(xs)) for output in range(len(outputs))]
    zeros = [Carried(FLOATS, "zeroinitializer")] * len(pairs)
    num_chunks, packing = text.argument("%own", 10), PACKINGS[kind]
    blocks = Loop(text, "0", text.argument("%own", 9), zeros)
    before = text.set(f"mul i64 {blocks.index}, {num_chunks}")
    if packing.exponent:
        ahead = text.set(f"mul i64 {text.argument('%own', 5)}, {OUTPUTS}")
        ahead = text.set(f"add i64 {ahead}, {text.set(f'mul i64 {before}, {packing.bits * 2}')}")
        for each in outputs:  # as much of the next unit as a block of 128 columns is
            for line in range(0, 128 * packing.bits // 8, 64):
                place = text.at(text.at(each.codes, ahead), line)
                text.do(f"call void @llvm.prefetch.p0(ptr {place}, i32 0, i32 3, i32 1)")
    chunks = Loop(text, "0", num_chunks, zeros)
    chunk = text.set(f"add i64 {before}, {chunks.index}")
    code_at = text.set(f"mul i64 {chunk}, {packing.bits * LANES // 8}")
    x_at = text.set(f"shl i64 {chunk}, 6")
    weights = [_weights(text, kind, text.at(each.codes, code_at)) for each in outputs]
    values = [text.load(FLOATS, text.at(each, x_at)) for each in xs]
    sums = [
        text.fma(LANES, weights[output], values[row], sum_before)
        for (row, output), sum_before in zip(pairs, chunks.values, strict=True)
    ]
    sums = chunks.close(sums)
    if packing.exponent:
        factors = [_factor(text, kind, each.scales, blocks.index) for each in outputs]
        grown = numbers(2.0**packing.exponent)
        sums = [
            text.fma(LANES, text.set(f"fmul {FLOATS} {each}, {grown}"), factors[output], total)
            for (_, output), each, total in zip(pairs, sums, blocks.values, strict=True)
        ]
    totals = blocks.close(sums)
    for (row, output), total in zip(pairs, totals, strict=True):
        place = text.at(outs[row], text.set(f"shl i64 {outputs[output].number}, 2"))
        text.store("float", write_tree(text, total), place)


class _Unpacked:
    """Many rows times some outputs: a block's codes become floats once for all rows of a panel, and
    sums of the blocks before wait in memory. Each sum has the order that it has in a tile."""

    def __init__(self, text: Text, kind: Kind, together: int) -> None:
        self._text, self._kind, self._together = text, kind, together
        self._weights, self._totals = (
            text.set(f"alloca [{vectors * together * LANES} x float], align {ROW_BYTES}")
            for vectors in (MOST_CHUNKS, PANEL)
        )

    def split(self, rows: str) -> str:
        """The number of a panel's rows that are multiplied tile by tile: all or none."""
        text = self._text
        is_many = text.set(f"icmp sge i64 {rows}, {MANY}")
        fits = text.set(f"icmp sle i64 {text.argument('%own', 10)}, {MOST_CHUNKS}")
        takes = text.set(f"and i1 {is_many}, {fits}")
        return text.set(f"select i1 {takes}, i64 0, i64 {rows}")

    def multiply(
        self,
        place: Callable[[str], str],
        out: tuple[str, str],
        rows: tuple[str, str],
        outputs: Sequence[_Output],
        counts: Sequence[int],
    ) -> None:
        """`place` of a row's numbers, `out` with the bytes of a row; all rows if the first of
        `rows` is 0, else none."""
        text = self._text
        count = text.set(f"sub i64 {rows[1]}, {rows[0]}")
        clear = Loop(text, "0", text.set(f"mul i64 {count}, {self._together}"))
        text.store(FLOATS, "zeroinitializer", self._at(self._totals, clear.index), ROW_BYTES)
        clear.close()
        num_chunks = text.argument("%own", 10)
        is_none = text.set(f"icmp eq i64 {count}, 0")
        num_blocks = text.argument("%own", 9)
        blocks = Loop(text, "0", text.set(f"select i1 {is_none}, i64 0, i64 {num_blocks}"))
        before = text.set(f"mul i64 {blocks.index}, {num_chunks}")
        self._unpack(outputs, before, num_chunks)
        factors = [_factor(text, self._kind, each.scales, blocks.index) for each in outputs]
        x_at = text.set(f"shl i64 {before}, 6")
        for tile in _tiles(text, count, counts):
            xs = [text.at(place(row), x_at) for row in tile]
            self._add(xs, tile[0], factors, num_chunks)
        blocks.close()
        over = Loop(text, "0", count)
        target = text.at(out[0], text.set(f"mul i64 {over.index}, {out[1]}"))
        for number, each in enumerate(outputs):
            total = text.load(FLOATS, self._total(over.index, number), ROW_BYTES)
            where = text.at(target, text.set(f"shl i64 {each.number}, 2"))
            text.store("float", write_tree(text, total), where)
        over.close()

    def _at(self, base: str, vector: str) -> str:
        return self._text.at(base, self._text.set(f"mul i64 {vector}, {ROW_BYTES}"))

    def _total(self, row: str, place: int) -> str:
        first = self._at(self._totals, self._text.set(f"mul i64 {row}, {self._together}"))
        return self._text.at(first, ROW_BYTES * place)

    def _unpack(self, outputs: Sequence["_Output"], before: str, num_chunks: str) -> None:
        text = self._text
        loop = Loop(text, "0", num_chunks)
        code_at = text.set(f"add i64 {before}, {loop.index}")
        code_at = text.set(f"mul i64 {code_at}, {PACKINGS[self._kind].bits * LANES // 8}")
        kept = self._at(self._weights, text.set(f"mul i64 {loop.index}, {self._together}"))
        for place, each in enumerate(outputs):
            values = _weights(text, self._kind, text.at(each.codes, code_at))
            text.store(FLOATS, values, text.at(kept, ROW_BYTES * place), ROW_BYTES)
        loop.close()

    def _add(self, xs: Sequence[str], row: str, factors: Sequence[str], num_chunks: str) -> None:
        """A block of some rows from number `row` on, onto their totals."""
        text = self._text
        pairs = [(row, place) for row in range(len(xs)) for place in range(self._together)]
        zeros = [Carried(FLOATS, "zeroinitializer")] * len(pairs)
        chunks = Loop(text, "0", num_chunks, zeros)
        kept = self._at(self._weights, text.set(f"mul i64 {chunks.index}, {self._together}"))
        weights = [
            text.load(FLOATS, text.at(kept, ROW_BYTES * place), ROW_BYTES)
            for place in range(self._together)
        ]
        x_at = text.set(f"shl i64 {chunks.index}, 6")
        values = [text.load(FLOATS, text.at(each, x_at)) for each in xs]
        sums = [
            text.fma(LANES, weights[place], values[index], before)
            for (index, place), before in zip(pairs, chunks.values, strict=True)
        ]
        sums = chunks.close(sums)
        grown = numbers(2.0 ** PACKINGS[self._kind].exponent)
        first = self._total(row, 0)
        for number, ((_, place), each) in enumerate(zip(pairs, sums, strict=True)):
            total = text.at(first, ROW_BYTES * number)
            before = text.load(FLOATS, total, ROW_BYTES)
            scaled = text.set(f"fmul {FLOATS} {each}, {grown}")
            text.store(FLOATS, text.fma(LANES, scaled, factors[place], before), total, ROW_BYTES)


def _factor(text: Text, kind: Kind, scales: str, block: str) -> str:
    if kind == "fp8_float":
        place = text.at(scales, text.set(f"shl i64 {block}, 2"))
        return text.splat("float", LANES, text.load("float", place))
    byte = text.set(f"zext i8 {text.load('i8', text.at(scales, block))} to i32")
    factor = text.set(f"bitcast i32 {text.set(f'shl i32 {byte}, 23')} to float")
    return text.splat("float", LANES, factor)


def _weights(text: Text, kind: Kind, address: str) -> str:
    """16 codes as floats; of FP8 and FP4 as if they were half floats."""
    if kind == "float32":
        return text.load(FLOATS, address)
    if kind == "bfloat16":
        words = text.set(f"zext {SHORTS} {text.load(SHORTS, address)} to <{LANES} x i32>")
        moved = text.set(f"shl <{LANES} x i32> {words}, {constant('i32', LANES, 16)}")
        return text.set(f"bitcast <{LANES} x i32> {moved} to {FLOATS}")
    bits = _fp4_bits(text, address) if kind == "fp4" else _fp8_bits(text, address)
    halves = text.set(f"bitcast {SHORTS} {bits} to <{LANES} x half>")
    return text.set(f"fpext <{LANES} x half> {halves} to {FLOATS}")


def _fp8_bits(text: Text, address: str) -> str:
    """Sign, four bits of exponent, three of mantissa, moved to where a half float has them."""
    codes = text.load(f"<{LANES} x i8>", address)
    shorts = text.set(f"zext <{LANES} x i8> {codes} to {SHORTS}")
    high = text.set(f"shl {SHORTS} {shorts}, {constant('i16', LANES, 8)}")
    moved = text.set(f"ashr {SHORTS} {high}, {constant('i16', LANES, 1)}")
    return text.set(f"and {SHORTS} {moved}, {constant('i16', LANES, -0x4001)}")


def _fp4_bits(text: Text, address: str) -> str:
    """As _fp8_bits, of two bits of exponent and one of mantissa, two codes in a byte."""
    codes = text.load(f"<{LANES // 2} x i8>", address)
    twice = ", ".join(f"i32 {lane // 2}" for lane in range(LANES))
    kind = f"<{LANES // 2} x i8>"
    pairs = text.set(f"shufflevector {kind} {codes}, {kind} poison, <{LANES} x i32> <{twice}>")
    shorts = text.set(f"zext <{LANES} x i8> {pairs} to {SHORTS}")
    places = ", ".join(f"i16 {12 - 4 * (lane % 2)}" for lane in range(LANES))
    high = text.set(f"shl {SHORTS} {shorts}, <{places}>")  # the code in the four highest bits
    sign = text.set(f"and {SHORTS} {high}, {constant('i16', LANES, -0x8000)}")
    moved = text.set(f"lshr {SHORTS} {high}, {constant('i16', LANES, 3)}")
    size = text.set(f"and {SHORTS} {moved}, {constant('i16', LANES, 0x0E00)}")
    return text.set(f"or {SHORTS} {sign}, {size}")
