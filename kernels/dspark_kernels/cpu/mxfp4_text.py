"""FP4 weights in the bytes of their file times rows of 8 bits, in LLVM's text.

A tile is 16 outputs. The words of four bytes that hold eight columns of each output are transposed
in registers, so that a lane is an output; a table makes unsigned codes of them, twice the value
and 12, whose products with a row's codes are added as whole numbers.
"""

from collections.abc import Sequence

from dspark_kernels.cpu.dot_text import Dot, Sums, make_dot
from dspark_kernels.cpu.int8_rows import GROUP, OFFSET, RECORD
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text, constant, vector
from dspark_kernels.cpu.mxfp4 import SEGMENT_WORDS, TILE

CODE_BITS = 5  # of twice the value and 12, at most 24
TWICE = (0, 1, 2, 3, 4, 6, 8, 12)  # of a code's lower three bits
TABLE = [OFFSET + value for value in TWICE] + [OFFSET - value for value in TWICE]
GROUP_BYTES = GROUP // 2
TOGETHER = 16  # groups whose scales are transposed at once
QUAD = 4
ROWS = {
    "amx": (8, 4, 3, 2, 1),
    "vnni512": (8, 4, 3, 2, 1),
    "avxvnni": (2, 1),
    "avx2": (2, 1),
    "neon": (1,),
    "generic": (1,),
}
SHUFFLES = {  # bytes of a table by bytes of indices
    "amx": "@llvm.x86.avx512.pshuf.b.512",
    "vnni512": "@llvm.x86.avx512.pshuf.b.512",
    "avxvnni": "@llvm.x86.avx2.pshuf.b",
    "avx2": "@llvm.x86.avx2.pshuf.b",
    "neon": "@llvm.aarch64.neon.tbl1.v16i8",
}


def write_mxfp4(text: Text, variant: str) -> None:
    """The function `mxfp4`; its words are those of mxfp4_op, a unit is a tile of a segment."""
    _Mxfp4(text, variant).write()


class _Mxfp4:
    def __init__(self, text: Text, variant: str) -> None:
        self._text, self._variant = text, variant
        self._dot: Dot = make_dot(variant, CODE_BITS)
        self._lanes = self._dot.lanes
        self._parts = range(TILE // self._lanes)  # vectors of a tile
        self._words, self._bytes = vector("i32", self._lanes), vector("i8", 4 * self._lanes)
        self._floats = vector("float", self._lanes)

    def write(self) -> None:
        text = self._text
        text.raw("define void @mxfp4(ptr %own, ptr %step, i64 %first, i64 %last) {")
        text.do(
            f"%scales = alloca [{TOGETHER // QUAD * len(self._parts)} x {self._words}], align 64"
        )
        segments, x = text.argument("%own", 0, "ptr"), text.argument("%own", 1, "ptr")
        groups, tiles = text.argument("%own", 2), text.argument("%own", 3)
        stride = text.argument("%own", 4)
        x_bytes = text.set(f"mul i64 {groups}, {RECORD}")
        units = Loop(text, "%first", "%last")
        segment = text.set(f"udiv i64 {units.index}, {tiles}")
        tile = text.set(f"urem i64 {units.index}, {tiles}")
        table = text.at(segments, text.set(f"mul i64 {segment}, {8 * SEGMENT_WORDS}"))
        codes, scales, rows = (text.argument(table, index, "ptr") for index in range(3))
        count, out = text.argument(table, 3), text.argument(table, 4, "ptr")
        code_bytes = text.set(f"mul i64 {groups}, {GROUP_BYTES}")
        before = text.set(f"mul i64 {tile}, {TILE}")
        codes = text.at(codes, text.set(f"mul i64 {before}, {code_bytes}"))
        scales = text.at(scales, text.set(f"mul i64 {before}, {groups}"))
        out = text.at(out, text.set(f"mul i64 {before}, 4"))
        done = "0"
        for number in ROWS[self._variant]:
            left = text.set(f"sub i64 {count}, {done}")
            whole = text.set(f"sub i64 {left}, {text.set(f'urem i64 {left}, {number}')}")
            end = text.set(f"add i64 {done}, {whole}")
            loop = Loop(text, done, end, step=str(number))
            xs, outs = [], []
            for index in range(number):
                row = text.set(f"add i64 {loop.index}, {index}")
                place = text.load("i64", text.at(rows, text.set(f"shl i64 {row}, 3")))
                xs.append(text.at(x, text.set(f"mul i64 {place}, {x_bytes}")))
                outs.append(text.at(out, text.set(f"mul i64 {row}, {stride}")))
            self._rows(xs, outs, codes, scales, groups, code_bytes)
            loop.close()
            done = end
        units.close()
        text.do("ret void")
        text.raw("}")
        self._declare()

    def _rows(
        self,
        xs: Sequence[str],
        outs: Sequence[str],
        codes: str,
        scales: str,
        groups: str,
        code_bytes: str,
    ) -> None:
        text = self._text
        places = [(row, part) for row in range(len(xs)) for part in self._parts]
        code_rows = [text.at(codes, text.set(f"mul i64 {code_bytes}, {i}")) for i in range(TILE)]
        scale_rows = [text.at(scales, text.set(f"mul i64 {groups}, {i}")) for i in range(TILE)]
        next_tile = text.at(codes, text.set(f"mul i64 {code_bytes}, {TILE}"))
        whole = text.set(f"and i64 {groups}, {-TOGETHER}")
        zeros = [Carried(self._floats, "zeroinitializer")] * len(places)
        together = Loop(text, "0", whole, zeros, step=str(TOGETHER))
        self._store_scales([text.at(each, together.index) for each in scale_rows])
        carried = [Carried(self._floats, each) for each in together.values]
        quads = Loop(text, "0", str(TOGETHER // QUAD), carried)
        sums = quads.values
        first = text.set(f"add i64 {together.index}, {text.set(f'mul i64 {quads.index}, {QUAD}')}")
        self._prefetch(next_tile, first)
        kept = [self._load_scales(quads.index, part) for part in self._parts]
        for inside in range(QUAD):
            group = text.set(f"add i64 {first}, {inside}")
            factors = [self._scale(each, inside) for each in kept]
            sums = self._group(xs, code_rows, group, factors, sums)
        sums = together.close(quads.close(sums))
        carried = [Carried(self._floats, each) for each in sums]
        rest = Loop(text, whole, groups, carried)
        single = [text.load("i8", text.at(each, rest.index)) for each in scale_rows]
        factors = [
            self._scale(self._gathered(single[part * self._lanes :]), 0) for part in self._parts
        ]
        sums = rest.close(self._group(xs, code_rows, rest.index, factors, rest.values))
        for (row, part), total in zip(places, sums, strict=True):
            text.store(self._floats, total, text.at(outs[row], 4 * self._lanes * part))

    def _group(
        self,
        xs: Sequence[str],
        code_rows: Sequence[str],
        group: str,
        factors: Sequence[str],
        sums: Sequence[str],
    ) -> list[str]:
        """32 columns of all outputs of the tile times all rows; sums by row, then by part."""
        text, dot = self._text, self._dot
        records = [text.at(x, text.set(f"mul i64 {group}, {RECORD}")) for x in xs]
        at = text.set(f"mul i64 {group}, {GROUP_BYTES}")
        halves = [text.load("float", text.at(record, GROUP)) for record in records]
        starts = [text.load("i32", text.at(record, GROUP + 4)) for record in records]
        out: dict[tuple[int, int], str] = {}
        for part in self._parts:
            rows = [text.at(each, at) for each in code_rows[part * self._lanes :][: self._lanes]]
            words = self._transposed([text.load("<4 x i32>", row) for row in rows])
            totals = [Sums([text.splat("i32", self._lanes, start)]) for start in starts]
            for word, stored in enumerate(words):
                for high in (0, 1):
                    weights = dot.weights(text, self._unsigned(stored, high))
                    for record, total in zip(records, totals, strict=True):
                        quad = text.load("i32", text.at(record, 4 * (2 * word + high)))
                        dot.add(text, total, weights, text.splat("i32", self._lanes, quad))
            for row, total in enumerate(totals):
                number = text.set(
                    f"sitofp {self._words} {dot.total(text, total)} to {self._floats}"
                )
                half = text.splat("float", self._lanes, halves[row])
                factor = text.set(f"fmul {self._floats} {factors[part]}, {half}")
                before = sums[row * len(self._parts) + part]
                out[row, part] = text.fma(self._lanes, number, factor, before)
        return [out[row, part] for row in range(len(xs)) for part in self._parts]

    def _transposed(self, rows: list[str]) -> list[str]:
        """<4 x i32> of each lane -> four vectors, of the first words, the second ones, ..."""
        blocks = self._lanes // 4
        merged = [self._joined([rows[4 * b + j] for b in range(blocks)]) for j in range(4)]
        low, high = (0, 1), (2, 3)

        def pairs(one: str, other: str, chosen: Sequence[int], step: int) -> str:
            """Inside every four lanes: `step` lanes of one, then of the other, by turns."""
            order = []
            for block in range(blocks):
                for start in chosen:
                    inside = [4 * block + start * step + i for i in range(step)]
                    order += [*inside, *(self._lanes + i for i in inside)]
            return self._shuffled(one, other, order, self._lanes)

        halves = [pairs(merged[0], merged[1], low, 1), pairs(merged[2], merged[3], low, 1)]
        uppers = [pairs(merged[0], merged[1], high, 1), pairs(merged[2], merged[3], high, 1)]
        return [pairs(two[0], two[1], (which,), 2) for two in (halves, uppers) for which in (0, 1)]

    def _joined(self, parts: list[str]) -> str:
        """Vectors of four lanes behind each other."""
        width = 4
        while len(parts) > 1:
            parts = [
                self._shuffled(one, other, range(2 * width), width)
                for one, other in zip(parts[::2], parts[1::2], strict=True)
            ]
            width *= 2
        return parts[0]

    def _shuffled(self, one: str, other: str, order: Sequence[int], width: int) -> str:
        kind = vector("i32", width)
        places = ", ".join(f"i32 {place}" for place in order)
        return self._text.set(
            f"shufflevector {kind} {one}, {kind} {other}, <{len(order)} x i32> <{places}>"
        )

    def _unsigned(self, words: str, high: int) -> str:
        """Four codes of each lane, as twice their value and 12."""
        text, count = self._text, 4 * self._lanes
        if high:
            words = text.set(f"lshr {self._words} {words}, {constant('i32', self._lanes, 4)}")
        codes = text.set(f"bitcast {self._words} {words} to {self._bytes}")
        codes = text.set(f"and {self._bytes} {codes}, {constant('i8', count, 15)}")
        if (shuffle := SHUFFLES.get(self._variant)) is None:
            return self._computed(codes)
        table = "<" + ", ".join(f"i8 {TABLE[place % 16]}" for place in range(count)) + ">"
        return text.set(
            f"call {self._bytes} {shuffle}({self._bytes} {table}, {self._bytes} {codes})"
        )

    def _computed(self, codes: str) -> str:
        """As the table, for processors without one."""
        text, kind, count = self._text, self._bytes, 4 * self._lanes
        size = text.set(f"and {kind} {codes}, {constant('i8', count, 7)}")
        twice = size
        for least, more in ((5, 1), (6, 1), (7, 3)):
            is_more = text.set(f"icmp ugt {kind} {size}, {constant('i8', count, least - 1)}")
            added = text.set(
                f"select <{count} x i1> {is_more}, {kind} {constant('i8', count, more)}, "
                f"{kind} zeroinitializer"
            )
            twice = text.set(f"add {kind} {twice}, {added}")
        offset = constant("i8", count, OFFSET)
        plus, minus = (text.set(f"{sign} {kind} {offset}, {twice}") for sign in ("add", "sub"))
        negative = text.set(f"icmp ugt {kind} {codes}, {constant('i8', count, 7)}")
        return text.set(f"select <{count} x i1> {negative}, {kind} {minus}, {kind} {plus}")

    def _store_scales(self, rows: Sequence[str]) -> None:
        """Of 16 groups, by four of them and by part: a lane's word has the bytes of four groups."""
        for part in self._parts:
            mine = rows[part * self._lanes :][: self._lanes]
            words = self._transposed([self._text.load("<4 x i32>", row) for row in mine])
            for word, each in enumerate(words):
                place = 4 * self._lanes * (word * len(self._parts) + part)
                self._text.store(self._words, each, self._text.at("%scales", place))

    def _load_scales(self, four: str, part: int) -> str:
        text, size = self._text, 4 * self._lanes
        base = text.at("%scales", text.set(f"mul i64 {four}, {size * len(self._parts)}"))
        return text.load(self._words, text.at(base, size * part))

    def _gathered(self, scales: Sequence[str]) -> str:
        """Single bytes as words of a vector."""
        text, whole = self._text, "poison"
        for lane in range(self._lanes):
            word = text.set(f"zext i8 {scales[lane]} to i32")
            whole = text.set(f"insertelement {self._words} {whole}, i32 {word}, i64 {lane}")
        return whole

    def _scale(self, words: str, byte: int) -> str:
        """2^(byte - 127) of one byte of each lane's word."""
        text, lanes = self._text, self._lanes
        moved = text.set(f"lshr {self._words} {words}, {constant('i32', lanes, 8 * byte)}")
        exponent = text.set(f"and {self._words} {moved}, {constant('i32', lanes, 255)}")
        bits = text.set(f"shl {self._words} {exponent}, {constant('i32', lanes, 23)}")
        return text.set(f"bitcast {self._words} {bits} to {self._floats}")

    def _prefetch(self, next_tile: str, group: str) -> None:
        """As much of the next tile as four groups of this one are."""
        text = self._text
        base = text.at(next_tile, text.set(f"mul i64 {group}, {GROUP_BYTES * TILE}"))
        for line in range(0, QUAD * GROUP_BYTES * TILE, 64):
            text.do(f"call void @llvm.prefetch.p0(ptr {text.at(base, line)}, i32 0, i32 3, i32 1)")

    def _declare(self) -> None:
        text = self._text
        text.raw("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        for line in self._dot.declarations:
            text.raw(line)
        if self._variant in SHUFFLES:
            text.raw(
                f"declare {self._bytes} {SHUFFLES[self._variant]}({self._bytes}, {self._bytes})"
            )
        if self._lanes != TILE:  # the file's other functions declare that of 16
            kind = self._floats
            text.raw(f"declare {kind} @llvm.fma.v{self._lanes}f32({kind}, {kind}, {kind})")
