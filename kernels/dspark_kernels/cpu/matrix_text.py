"""Stored weights times rounded rows in LLVM's text: one function for each format and variant.

A tile of up to eight rows goes through a block of 16 outputs in passes: some of its rows, some of
the block's lanes, as many as the registers hold.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dspark_kernels.cpu.dot_text import Dot, Sums, make_dot
from dspark_kernels.cpu.formats import FORMATS, Format
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text, constant, vector
from dspark_kernels.cpu.rounded import (
    BYTE,
    CODE_BYTES,
    FIELD_BYTES,
    GROUP,
    GROUP_BYTES,
    TILE_ROWS,
)
from dspark_kernels.cpu.stored_weight import LANES, PLANES

# rows of a pass, and native vectors of its lanes, by how wide a vector is
PASSES = {16: (8, 1), 8: (4, 1), 4: (4, 2)}
FEW_ROWS = 2  # this many take all lanes of a block at once, whatever the width
LINE = 64
PREFETCH = 8192  # bytes ahead of the current product
PARAMETERS = ", ".join(["ptr %x", "ptr %out", "i64 %stride", "i64 %groups", "ptr %bias"])
PARAMETERS += ", " + ", ".join(f"ptr %{plane}" for plane in PLANES)


Row = int | str  # its number, or the value that holds it


class Pass(NamedTuple):
    rows: Sequence[Row]
    lanes: range  # first lanes of its vectors
    is_first: bool  # of its tile


def matrix_text(kind: str, variant: str) -> str:
    """The text of `matrix_{kind}`; its words are those of multiply_op."""
    form, text = FORMATS[kind], Text()
    dot = make_dot(variant, form.bits)
    if variant == "generic":
        _any_tile(text, form, dot, kind)
    else:
        for rows in range(1, TILE_ROWS + 1):
            _tile(text, form, dot, rows, kind)
    _matrix(text, kind, form, "tile_of_any" if variant == "generic" else None)
    text.raw("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
    kind_of_lanes = vector("float", dot.lanes)
    for line in dot.declarations:
        text.raw(line)
    text.raw(
        f"declare {kind_of_lanes} @llvm.fma.v{dot.lanes}f32"
        f"({kind_of_lanes}, {kind_of_lanes}, {kind_of_lanes})"
    )
    return str(text)


def _matrix(text: Text, kind: str, form: Format, any_tile: str | None) -> None:
    """Blocks of outputs outside, so that a weight comes from memory once for all rows."""
    text.raw(f"define void @matrix_{kind}(ptr %own, ptr %step, i64 %first, i64 %last) {{")
    x, out = text.argument("%own", 0, "ptr"), text.argument("%own", 1, "ptr")
    stride, groups = text.argument("%own", 2), text.argument("%own", 3)
    bias, bias_step = text.argument("%own", 4, "ptr"), text.argument("%own", 5)
    planes = [text.argument("%own", 6 + index, "ptr") for index in range(len(PLANES))]
    rows = text.load("i64", "%step", 8)
    row_bytes = text.set(f"mul i64 {groups}, {GROUP_BYTES}")
    sizes = [text.set(f"mul i64 {groups}, {size}") for size in _bytes_of_group(form)]
    supers = text.set(f"lshr i64 {groups}, 3")
    sizes += [text.set(f"mul i64 {supers}, {2 * LANES}")] * 2
    blocks = Loop(text, "%first", "%last")
    here = [
        text.at(plane, text.set(f"mul i64 {blocks.index}, {size}"))
        for plane, size in zip(planes, sizes, strict=True)
    ]
    bias_here = text.at(bias, text.set(f"mul i64 {blocks.index}, {bias_step}"))
    out_here = text.at(out, text.set(f"mul i64 {blocks.index}, {4 * LANES}"))
    tiles = Loop(text, "0", rows, step=str(TILE_ROWS))
    x_tile = text.at(x, text.set(f"mul i64 {tiles.index}, {row_bytes}"))
    out_tile = text.at(out_here, text.set(f"mul i64 {tiles.index}, {stride}"))
    left = text.set(f"sub i64 {rows}, {tiles.index}")
    arguments = ", ".join(
        [f"ptr {x_tile}", f"ptr {out_tile}", f"i64 {stride}", f"i64 {groups}", f"ptr {bias_here}"]
        + [f"ptr {plane}" for plane in here]
    )
    if any_tile:
        count = text.set(f"call i64 @llvm.smin.i64(i64 {left}, i64 {TILE_ROWS})")
        text.do(f"call void @{any_tile}({arguments}, i64 {count})")
    else:
        _call_tile(text, left, arguments)
    tiles.close()
    blocks.close()
    text.do("ret void")
    text.raw("}")


def _call_tile(text: Text, left: str, arguments: str) -> None:
    """Of as many rows as are left, at most a whole one."""
    labels = [text.fresh("rows") for _ in range(TILE_ROWS)]
    after = text.fresh("after")
    cases = " ".join(f"i64 {n + 1}, label %{label}" for n, label in enumerate(labels[:-1]))
    text.do(f"switch i64 {left}, label %{labels[-1]} [{cases}]")
    for number, label in enumerate(labels):
        text.label(label)
        text.do(f"call void @tile{number + 1}({arguments})")
        text.do(f"br label %{after}")
    text.label(after)


def _bytes_of_group(form: Format) -> list[int]:
    """Of a block, in the planes with an entry per group."""
    each = LANES * (1 if form.is_super else 2)
    return [64 * form.low_bits, 64 * form.high_bits, each * form.parts, each]


def _passes(rows: int, dot: Dot) -> list[Pass]:
    most, vectors = PASSES[dot.lanes]
    if rows <= FEW_ROWS:
        vectors = LANES // dot.lanes
    span = vectors * dot.lanes
    return [
        Pass(
            range(first, min(first + most, rows)),
            range(lane, lane + span, dot.lanes),
            is_first=first == lane == 0,
        )
        for first in range(0, rows, most)
        for lane in range(0, LANES, span)
    ]


def _tile(text: Text, form: Format, dot: Dot, rows: int, kind: str) -> None:
    text.raw(f"define internal void @tile{rows}({PARAMETERS}) noinline {{")
    for each in _passes(rows, dot):
        _Tile(text, form, dot, rows, kind).run(each)
    text.do("ret void")
    text.raw("}")


def _any_tile(text: Text, form: Format, dot: Dot, kind: str) -> None:
    """Row by row, for any number of rows: little text, for a variant that no processor prefers."""
    text.raw(f"define internal void @tile_of_any({PARAMETERS}, i64 %rows) noinline {{")
    loop = Loop(text, "0", "%rows")
    _Tile(text, form, dot, "%rows", kind).run(Pass([loop.index], range(0, LANES, dot.lanes), True))
    loop.close()
    text.do("ret void")
    text.raw("}")
    text.raw("declare i64 @llvm.smin.i64(i64, i64)")


class _Tile:
    """One pass of a tile of `rows` rows."""

    def __init__(self, text: Text, form: Format, dot: Dot, rows: Row, kind: str) -> None:
        self._text, self._form, self._dot, self._rows = text, form, dot, rows
        self._floats, self._words = vector("float", dot.lanes), vector("i32", dot.lanes)
        self._codes = vector("i8", 4 * dot.lanes)
        self._factor_kind = "sext" if kind == "q6_k" else "zext"

    def run(self, this: Pass) -> None:
        text, form = self._text, self._form
        both = [(row, lane) for row in this.rows for lane in this.lanes]
        starts = {lane: text.load(self._floats, text.at("%bias", 4 * lane)) for lane in this.lanes}
        size = text.set(f"mul i64 {text.set(f'mul i64 %groups, {self._rows}')}, {CODE_BYTES}")
        all_fields = text.at("%x", size)
        loop = Loop(text, "0", "%groups", [Carried(self._floats, starts[lane]) for _, lane in both])
        outs = dict(zip(both, loop.values, strict=True))
        group = loop.index
        before = text.set(f"mul i64 {group}, {self._rows}")
        x = text.at("%x", text.set(f"mul i64 {before}, {CODE_BYTES}"))
        fields = text.at(all_fields, text.set(f"mul i64 {before}, {FIELD_BYTES}"))
        if this.is_first:
            self._prefetch(group)
        scales = {row: self._row_number(fields, row, 0, "float") for row in this.rows}
        quads = range(8)
        for part in range(form.parts):
            inside = quads[part * 8 // form.parts : (part + 1) * 8 // form.parts]
            sums = self._sums(x, fields, group, this, inside)
            for lane in this.lanes:
                factor = self._factor(group, lane, part)
                for row in this.rows:
                    whole = self._whole(*sums[row, lane])
                    real = text.set(f"sitofp {self._words} {whole} to {self._floats}")
                    real = text.set(f"fmul {self._floats} {real}, {scales[row]}")
                    outs[row, lane] = text.fma(self._dot.lanes, real, factor, outs[row, lane])
        if form.has_least:
            self._add_leasts(fields, group, this, outs)
        for (row, lane), value in zip(both, loop.close([outs[key] for key in both]), strict=True):
            place = text.set(f"add i64 {self._times('%stride', row)}, {4 * lane}")
            text.store(self._floats, value, text.at("%out", place))

    def _prefetch(self, group: str) -> None:
        """Prefetches a pass's codes; processors prefetch too, but not far enough."""
        for plane, size in zip(PLANES, _bytes_of_group(self._form)[:2], strict=False):
            base = self._text.at(f"%{plane}", self._text.set(f"mul i64 {group}, {size}"))
            for line in range(0, size, LINE):
                ahead = self._text.at(base, PREFETCH + line)
                self._text.do(f"call void @llvm.prefetch.p0(ptr {ahead}, i32 0, i32 2, i32 1)")

    def _sums(
        self, x: str, fields: str, group: str, this: Pass, quads: range
    ) -> dict[tuple[Row, int], tuple[Sums, Sums]]:
        """Of the first bytes of the codes, and of the second ones."""
        text, offset = self._text, self._form.offset
        sums = {(row, lane): (Sums(), Sums()) for row in this.rows for lane in this.lanes}
        if offset and not self._dot.is_signed:
            for (row, _), (_, second) in sums.items():
                second.whole.append(self._offset_sum(fields, row, quads, offset))
        for quad in quads:
            weights = {lane: self._weights(group, lane, quad) for lane in this.lanes}
            for row in this.rows:
                for byte in range(2):
                    place = text.at(self._of_row(x, row, CODE_BYTES), GROUP * byte + 4 * quad)
                    codes = text.splat("i32", self._dot.lanes, text.load("i32", place))
                    for lane in this.lanes:
                        self._dot.add(text, sums[row, lane][byte], weights[lane], codes)
        return sums

    def _whole(self, first: Sums, second: Sums) -> str:
        text, words, lanes = self._text, self._words, self._dot.lanes
        total = self._dot.total(text, first)
        total = text.set(f"shl {words} {total}, {constant('i32', lanes, BYTE)}")
        return text.set(f"add {words} {total}, {self._dot.total(text, second)}")

    def _offset_sum(self, fields: str, row: Row, quads: range, offset: int) -> str:
        """-offset times the sum of the row's codes in these quads."""
        text, words = self._text, self._words
        stored = self._row_number(fields, row, 1 if len(quads) == 8 else 3, "i32")  # -8 times it
        if quads.start > 0:
            whole = self._row_number(fields, row, 1, "i32")
            stored = text.set(f"sub {words} {whole}, {stored}")
        shift = constant("i32", self._dot.lanes, (offset // 8).bit_length() - 1)
        return stored if offset == 8 else text.set(f"shl {words} {stored}, {shift}")

    def _weights(self, group: str, lane: int, quad: int) -> str:
        text, form = self._text, self._form
        if form.low_bits == 8:
            codes = self._plane("low", group, 512, 64 * quad + 4 * lane)
            return self._dot.weights(text, codes)
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
        return self._dot.weights(text, codes)

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
