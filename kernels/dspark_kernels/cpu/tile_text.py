"""Some of a tile's rows times some lanes of a block of outputs, in LLVM's text."""

from collections.abc import Sequence
from typing import NamedTuple

from dspark_kernels.cpu.dot_text import Dot, Sums
from dspark_kernels.cpu.formats import Format
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text, constant, vector
from dspark_kernels.cpu.rounded import BYTE, CODE_BYTES, FIELD_BYTES, GROUP, GROUP_BYTES, TILE_ROWS
from dspark_kernels.cpu.stored_weight import LANES, PLANES

LINE = 64
PREFETCH = 8192  # bytes ahead of the current product

Row = int | str  # its number, or the value that holds it


PARAMETERS = "ptr %x, ptr %out, i64 %stride, i64 %groups, ptr %bias, "
PARAMETERS += ", ".join(f"ptr %{plane}" for plane in PLANES)


class Block(NamedTuple):
    """Values around a block of outputs, those of PARAMETERS first."""

    x: str
    out: str
    stride: str
    groups: str
    bias: str
    planes: Sequence[str]
    rows: str
    number: str

    @property
    def arguments(self) -> str:
        """For PARAMETERS."""
        numbers = f"ptr {self.x}, ptr {self.out}, i64 {self.stride}, i64 {self.groups}"
        return ", ".join([numbers, f"ptr {self.bias}", *(f"ptr {plane}" for plane in self.planes)])

    def tile(self, text: Text, row: str) -> tuple["Block", str]:
        """From this row on, and the number of rows that are left."""
        record = text.set(f"mul i64 {self.groups}, {GROUP_BYTES}")
        x = text.at(self.x, text.set(f"mul i64 {row}, {record}"))
        out = text.at(self.out, text.set(f"mul i64 {row}, {self.stride}"))
        return self._replace(x=x, out=out), text.set(f"sub i64 {self.rows}, {row}")


class Pass(NamedTuple):
    rows: Sequence[Row]
    lanes: range  # first lanes of its vectors
    is_first: bool  # of its tile


def bytes_of_group(form: Format) -> list[int]:
    """Of a block, in the planes with an entry per group."""
    each = LANES * (1 if form.is_super else 2)
    return [64 * form.low_bits, 64 * form.high_bits, each * form.parts, each]


def call_by_rows(text: Text, name: str, left: str, arguments: str, most: int = TILE_ROWS) -> None:
    """The function of as many rows as are left, `most` if they are more."""
    labels = [text.fresh("rows") for _ in range(most)]
    after = text.fresh("after")
    cases = " ".join(f"i64 {n + 1}, label %{label}" for n, label in enumerate(labels[:-1]))
    text.do(f"switch i64 {left}, label %{labels[-1]} [{cases}]")
    for number, label in enumerate(labels):
        text.label(label)
        text.do(f"call void @{name}{number + 1}({arguments})")
        text.do(f"br label %{after}")
    text.label(after)


class Tile:
    """One pass of a tile of `rows` rows, inside a function with PARAMETERS."""

    def __init__(self, text: Text, form: Format, dot: Dot, rows: Row, kind: str) -> None:
        self._text, self._form, self._dot, self._rows = text, form, dot, rows
        self._floats, self._words = vector("float", dot.lanes), vector("i32", dot.lanes)
        self._codes = vector("i8", 4 * dot.lanes)
        self._factor_kind = "sext" if kind == "q6_k" else "zext"

    def run(self, this: Pass) -> None:
        starts = [Carried(self._floats, start) for start in self.starts(this)]
        loop = Loop(self._text, "0", "%groups", starts)
        self.store(this, loop.close(self.add(this, loop.index, loop.values)))

    def starts(self, this: Pass) -> list[str]:
        """Of each row, lane by lane."""
        return [self._start(row, lane) for row in this.rows for lane in this.lanes]

    def add(self, this: Pass, group: str, sums: Sequence[str]) -> list[str]:
        """Products of a group to what there is of each row."""
        text, form = self._text, self._form
        outs = dict(
            zip(((row, lane) for row in this.rows for lane in this.lanes), sums, strict=True)
        )
        size = text.set(f"mul i64 {text.set(f'mul i64 %groups, {self._rows}')}, {CODE_BYTES}")
        before = text.set(f"mul i64 {group}, {self._rows}")
        x = text.at("%x", text.set(f"mul i64 {before}, {CODE_BYTES}"))
        fields = text.at(text.at("%x", size), text.set(f"mul i64 {before}, {FIELD_BYTES}"))
        if this.is_first:
            self.prefetch(group)
        scales = {row: self._row_number(fields, row, 0, "float") for row in this.rows}
        for part in range(form.parts):
            wholes = self._sums(x, fields, group, this, part)
            for lane in this.lanes:
                factor = self._factor(group, lane, part)
                for row in this.rows:
                    real = text.set(f"sitofp {self._words} {wholes[row, lane]} to {self._floats}")
                    real = text.set(f"fmul {self._floats} {real}, {scales[row]}")
                    outs[row, lane] = text.fma(self._dot.lanes, real, factor, outs[row, lane])
        if form.has_least:
            self._add_leasts(fields, group, this, outs)
        return list(outs.values())

    def store(self, this: Pass, values: Sequence[str]) -> None:
        text = self._text
        both = [(row, lane) for row in this.rows for lane in this.lanes]
        for (row, lane), value in zip(both, values, strict=True):
            place = text.set(f"add i64 {self._times('%stride', row)}, {4 * lane}")
            text.store(self._floats, value, text.at("%out", place))

    def _start(self, row: Row, lane: int) -> str:
        return self._text.load(self._floats, self._text.at("%bias", 4 * lane))

    def prefetch(self, group: str, ahead: int = PREFETCH, level: int = 2) -> None:
        """Prefetches a pass's codes into a cache's level; processors prefetch too, but not far
        enough."""
        for plane, size in zip(PLANES, bytes_of_group(self._form)[:2], strict=False):
            base = self._text.at(f"%{plane}", self._text.set(f"mul i64 {group}, {size}"))
            for line in range(0, size, LINE):
                place = self._text.at(base, ahead + line)
                call = f"@llvm.prefetch.p0(ptr {place}, i32 0, i32 {4 - level}, i32 1)"
                self._text.do(f"call void {call}")

    def _sums(
        self, x: str, fields: str, group: str, this: Pass, part: int
    ) -> dict[tuple[Row, int], str]:
        """Of the products of codes, in whole numbers."""
        text, form = self._text, self._form
        quads = range(8)[part * 8 // form.parts : (part + 1) * 8 // form.parts]
        # of the first bytes of the codes, and of the second ones
        sums = {(row, lane): (Sums(), Sums()) for row in this.rows for lane in this.lanes}
        if form.offset and not self._dot.is_signed:
            for (row, _), (_, second) in sums.items():
                second.whole.append(self._offset_sum(fields, row, quads, form.offset))
        for quad in quads:
            weights = {
                lane: self._dot.weights(text, self.codes(group, lane, quad)) for lane in this.lanes
            }
            for row in this.rows:
                for byte in range(2):
                    place = text.at(self._of_row(x, row, CODE_BYTES), GROUP * byte + 4 * quad)
                    codes = text.splat("i32", self._dot.lanes, text.load("i32", place))
                    for lane in this.lanes:
                        self._dot.add(text, sums[row, lane][byte], weights[lane], codes)
        return {
            key: self._whole(*(self._dot.total(text, s) for s in two)) for key, two in sums.items()
        }

    def _whole(self, first: str, second: str) -> str:
        text, words, lanes = self._text, self._words, self._dot.lanes
        total = text.set(f"shl {words} {first}, {constant('i32', lanes, BYTE)}")
        return text.set(f"add {words} {total}, {second}")

    def _offset_sum(self, fields: str, row: Row, quads: range, offset: int) -> str:
        """-offset times the sum of the row's codes in these quads."""
        text, words = self._text, self._words
        stored = self._row_number(fields, row, 1 if len(quads) == 8 else 3, "i32")  # -8 times it
        if quads.start > 0:
            whole = self._row_number(fields, row, 1, "i32")
            stored = text.set(f"sub {words} {whole}, {stored}")
        shift = constant("i32", self._dot.lanes, (offset // 8).bit_length() - 1)
        return stored if offset == 8 else text.set(f"shl {words} {stored}, {shift}")

    def codes(self, group: str, lane: int, quad: int) -> str:
        """Unsigned bytes: four inputs of each lane."""
        text, form = self._text, self._form
        if form.low_bits == 8:
            return self._plane("low", group, 512, 64 * quad + 4 * lane)
        codes = self._plane("low", group, 256, 64 * (quad // 2) + 4 * lane)
        if quad % 2:
            codes = self._shifted(codes, 4)
        codes = text.set(f"and {self._codes} {codes}, {constant('i8', 4 * self._dot.lanes, 15)}")
        if form.high_bits:
            per_vector = 8 // form.high_bits
            vector_of, field = divmod(quad, per_vector)
            high = self._plane("high", group, 64 * form.high_bits, 64 * vector_of + 4 * lane)
            high = self._shifted(high, field * form.high_bits - 4)
            mask = ((1 << form.high_bits) - 1) << 4
            masks = constant("i8", 4 * self._dot.lanes, mask)
            high = text.set(f"and {self._codes} {high}, {masks}")
            codes = text.set(f"or {self._codes} {codes}, {high}")
        return codes

    def _plane(self, plane: str, group: str, group_bytes: int, inside: int) -> str:
        """Codes of four inputs for each lane."""
        text = self._text
        base = text.at(f"%{plane}", text.set(f"mul i64 {group}, {group_bytes}"))
        return text.load(self._codes, text.at(base, inside))

    def _shifted(self, codes: str, right: int) -> str:
        """Bits that come from a neighbouring byte are masked off by who asks."""
        if right == 0:
            return codes
        text, lanes = self._text, self._dot.lanes
        words = text.set(f"bitcast {self._codes} {codes} to {self._words}")
        how = "lshr" if right > 0 else "shl"
        moved = text.set(f"{how} {self._words} {words}, {constant('i32', lanes, abs(right))}")
        return text.set(f"bitcast {self._words} {moved} to {self._codes}")

    def _times(self, one: Row, other: Row) -> Row:
        if isinstance(one, int) and isinstance(other, int):
            return one * other
        return self._text.set(f"mul i64 {one}, {other}")

    def _of_row(self, base: str, row: Row, size: int) -> str:
        return self._text.at(base, self._times(row, size))

    def _row_number(self, fields: str, row: Row, index: int, kind: str) -> str:
        place = self._text.at(self._of_row(fields, row, FIELD_BYTES), 4 * index)
        return self._text.splat(kind, self._dot.lanes, self._text.load(kind, place))

    def _factor(self, group: str, lane: int, part: int) -> str:
        form, index = self._form, part
        if not form.is_super:
            return self._halves("factors", group, lane)
        size = LANES * form.parts
        small = self._small("factors", group, size, LANES * index + lane, self._factor_kind)
        return self._text.set(
            f"fmul {self._floats} {small}, {self._super('super_factors', group, lane)}"
        )

    def _add_leasts(
        self, fields: str, group: str, this: Pass, outs: dict[tuple[Row, int], str]
    ) -> None:
        text = self._text
        sums = {row: self._row_number(fields, row, 2, "float") for row in this.rows}
        for lane in this.lanes:
            if self._form.is_super:
                small = self._small("leasts", group, LANES, lane, "zext")
                whole = self._super("super_leasts", group, lane)
                least = text.set(f"fmul {self._floats} {small}, {whole}")
                least = text.set(f"fneg {self._floats} {least}")
            else:
                least = self._halves("leasts", group, lane)
            for row in this.rows:
                outs[row, lane] = text.fma(self._dot.lanes, sums[row], least, outs[row, lane])

    def _halves(self, plane: str, entry: str, lane: int) -> str:
        text, lanes = self._text, self._dot.lanes
        base = text.at(f"%{plane}", text.set(f"mul i64 {entry}, {2 * LANES}"))
        halves = text.load(vector("half", lanes), text.at(base, 2 * lane))
        return text.set(f"fpext {vector('half', lanes)} {halves} to {self._floats}")

    def _super(self, plane: str, group: str, lane: int) -> str:
        return self._halves(plane, self._text.set(f"lshr i64 {group}, 3"), lane)

    def _small(self, plane: str, group: str, size: int, inside: int, widen: str) -> str:
        text, lanes = self._text, self._dot.lanes
        base = text.at(f"%{plane}", text.set(f"mul i64 {group}, {size}"))
        codes = text.load(vector("i8", lanes), text.at(base, inside))
        words = text.set(f"{widen} {vector('i8', lanes)} {codes} to {self._words}")
        return text.set(f"sitofp {self._words} {words} to {self._floats}")
