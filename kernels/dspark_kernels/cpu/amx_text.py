"""Stored weights times many rounded rows in AMX tiles, in LLVM's text.

A block of outputs goes by in spans of groups, whose codes are unpacked once for all rows, while
the span before is multiplied: tiles read slowly what was only just written. A tile of up to eight
rows has a line for each row's first bytes and one for its second. A group's products begin when
those of two groups before are stored and those of three before are scaled and added: a product
takes long, and a store that waits for it holds up all others.
"""

from collections.abc import Sequence

from dspark_kernels.cpu.dot_text import Vnni
from dspark_kernels.cpu.float_text import FLOATS
from dspark_kernels.cpu.formats import Format
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text, constant
from dspark_kernels.cpu.rounded import CODE_BYTES, GROUP, TILE_ROWS
from dspark_kernels.cpu.stored_weight import LANES, PLANES
from dspark_kernels.cpu.tile_text import (
    PARAMETERS,
    Block,
    Pass,
    Row,
    Tile,
    bytes_of_group,
    call_by_rows,
)

SPAN = 18  # groups at most
STORED_AFTER, ADDED_AFTER = 2, 3  # groups, from the beginning of a group's products
SLOTS = 2
PREFETCH = 2048  # bytes ahead of what is unpacked
WEIGHT_BYTES = GROUP * LANES  # of a group
SUM_BYTES = 4 * LANES  # of a row and one of its bytes
PRODUCT_BYTES = 2 * TILE_ROWS * SUM_BYTES
ROWS_TILE, WEIGHTS_TILE, SUMS_TILE = range(3)  # SUMS_TILE is the first of several
CONFIG_BYTES, COLUMNS_AT, ROWS_AT = 64, 16, 48  # of the processor's description of tiles


def few_rows(form: Format) -> int:
    """As many as vectors multiply as fast or faster while weights come from memory."""
    return 7 if form.low_bits == 4 else 23


def write_choice(text: Text, name: str, form: Format) -> None:
    """By the number of rows `in_vectors` or `in_tiles`, which multiply the same."""
    words = "ptr %own, ptr %step, i64 %first, i64 %last"
    text.raw(f"define {name}({words}) {{")
    rows = text.load("i64", "%step", 8)
    text.do(f"br i1 {text.set(f'icmp sgt i64 {rows}, {few_rows(form)}')}, label %many, label %few")
    text.label("few")
    text.do(f"call void @in_vectors({words})")
    text.do("ret void")
    text.label("many")
    size = 2 * SPAN * WEIGHT_BYTES + SLOTS * form.parts * PRODUCT_BYTES
    memory = text.set(f"alloca [{size} x i8], align 64")
    _open_tiles(text, form, rows)
    text.do(f"call void @in_tiles({words}, ptr {memory})")
    text.do("call void @llvm.x86.tilerelease()")
    text.do("ret void")
    text.raw("}")


def _open_tiles(text: Text, form: Format, rows: str) -> None:
    """Sizes of this thread's tiles. The last rows of many are multiplied with what lies behind
    them."""
    config = text.set(f"alloca [{CONFIG_BYTES} x i8], align 64")
    text.store("<64 x i8>", "zeroinitializer", config)
    text.store("i8", "1", config)
    height = text.set(f"call i64 @llvm.smin.i64(i64 {rows}, i64 {TILE_ROWS})")
    height = text.set(f"trunc i64 {text.set(f'shl i64 {height}, 1')} to i8")
    inputs = GROUP // form.parts
    sizes = [
        (height, inputs),
        (str(inputs // 4), SUM_BYTES),
        *[(height, SUM_BYTES)] * (STORED_AFTER * form.parts),
    ]
    for tile, (num_rows, num_bytes) in enumerate(sizes):
        text.store("i16", str(num_bytes), text.at(config, COLUMNS_AT + 2 * tile))
        text.store("i8", num_rows, text.at(config, ROWS_AT + tile))
    text.do(f"call void @llvm.x86.ldtilecfg(ptr {config})")


def multiply_block(text: Text, block: Block) -> None:
    number = text.set(f"sub i64 {block.number}, %first")
    left = text.set(f"sub i64 %last, {block.number}")
    text.do(
        f"call void @amx_block({block.arguments}, i64 {block.rows}, ptr %memory, i64 {number}, "
        f"i64 {left})"
    )


def write_amx(text: Text, form: Format, kind: str) -> None:
    """`amx_block`: a block of outputs times all rows."""
    _unpack(text, form, kind)
    for rows in range(1, TILE_ROWS + 1):
        _rows(text, form, kind, rows)
    own = "i64 %rows, ptr %memory, i64 %number, i64 %left"
    text.raw(f"define internal void @amx_block({PARAMETERS}, {own}) noinline {{")
    num_spans = text.set(f"udiv i64 {text.set(f'add i64 %groups, {SPAN - 1}')}, {SPAN}")
    most = text.set(f"add i64 %groups, {text.set(f'sub i64 {num_spans}, 1')}")
    size = text.set(f"udiv i64 {most}, {num_spans}")
    sums = text.at("%memory", 2 * SPAN * WEIGHT_BYTES)
    before = text.set(f"mul i64 %number, {num_spans}")
    is_start = text.set("icmp eq i64 %number, 0")
    text.do(f"br i1 {is_start}, label %begin, label %go")
    text.label("begin")
    text.do(f"call void @unpack(ptr %low, ptr %high, i64 0, i64 {size}, ptr %memory)")
    text.do("br label %go")
    text.label("go")
    spans = Loop(text, "0", num_spans)
    begin = text.set(f"mul i64 {spans.index}, {size}")
    end = _least(text, text.set(f"add i64 {begin}, {size}"), "%groups")
    odd = text.set(f"and i64 {text.set(f'add i64 {before}, {spans.index}')}, 1")
    weights, others = (
        text.at("%memory", text.set(f"mul i64 {half}, {SPAN * WEIGHT_BYTES}"))
        for half in (odd, text.set(f"xor i64 {odd}, 1"))
    )
    in_block = _least(text, text.set(f"sub i64 %groups, {end}"), size)
    is_end = text.set(f"icmp eq i64 {end}, %groups")
    is_last = text.set("icmp eq i64 %left, 1")
    in_next = text.set(f"select i1 {is_last}, i64 0, i64 {size}")
    following = text.set(f"select i1 {is_end}, i64 {in_next}, i64 {in_block}")
    is_first = text.set(f"icmp eq i64 {spans.index}, 0")
    start_stride = text.set(f"select i1 {is_first}, i64 0, i64 %stride")
    planes = [f"%{plane}" for plane in PLANES]
    block = Block("%x", "%out", "%stride", "%groups", "%bias", planes, "%rows", "")
    tiles = Loop(text, "0", "%rows", step=str(TILE_ROWS))
    tile, left = block.tile(text, tiles.index)
    tile = tile._replace(bias=text.set(f"select i1 {is_first}, ptr %bias, ptr {tile.out}"))
    is_first_tile = text.set(f"icmp eq i64 {tiles.index}, 0")
    count = text.set(f"select i1 {is_first_tile}, i64 {following}, i64 0")
    words = (
        f"i64 {begin}, i64 {end}, i64 {start_stride}, ptr {weights}, ptr {sums}, i64 {count}, "
        f"ptr {others}"
    )
    call_by_rows(text, "amx_rows", left, f"{tile.arguments}, {words}")
    tiles.close()
    spans.close()
    text.do("ret void")
    text.raw("}")
    _declare(text)


def _least(text: Text, one: str, other: str) -> str:
    return text.set(f"call i64 @llvm.smin.i64(i64 {one}, i64 {other})")


def _unpack(text: Text, form: Format, kind: str) -> None:
    """Codes of groups to bytes, signed ones where the format has an offset."""
    words = "ptr %low, ptr %high, i64 %begin, i64 %end, ptr %weights"
    text.raw(f"define internal void @unpack({words}) {{")
    loop = Loop(text, "%begin", "%end")
    tile = Tile(text, form, Vnni(LANES), 1, kind)
    tile.prefetch(loop.index, PREFETCH, level=1)
    target = text.at("%weights", text.set(f"mul i64 {loop.index}, {WEIGHT_BYTES}"))
    for quad in range(GROUP // 4):
        codes = tile.codes(loop.index, 0, quad)
        if form.offset:
            codes = text.set(f"sub <64 x i8> {codes}, {constant('i8', 64, form.offset % 256)}")
        text.store("<64 x i8>", codes, text.at(target, 64 * quad), 64)
    loop.close()
    text.do("ret void")
    text.raw("}")


def _rows(text: Text, form: Format, kind: str, rows: int) -> None:
    """Of a span; `next_count` groups of the next one are unpacked meanwhile."""
    own = (
        "i64 %begin, i64 %end, i64 %start_stride, ptr %weights, ptr %sums, i64 %next_count, "
        "ptr %next_weights"
    )
    text.raw(f"define internal void @amx_rows{rows}({PARAMETERS}, {own}) noinline {{")
    span = _Span(text, form, kind, rows)
    starts = [Carried(FLOATS, start) for start in span.adder.starts(span.whole)]
    last = text.set(f"add i64 {span.count}, {ADDED_AFTER}")
    last = text.set(f"call i64 @llvm.smax.i64(i64 {last}, i64 %next_count)")
    loop = Loop(text, "0", last, starts, step=str(STORED_AFTER))
    outs: Sequence[str] = loop.values
    for turn in range(STORED_AFTER):
        now = text.set(f"add i64 {loop.index}, {turn}")
        stored, added = (text.set(f"sub i64 {now}, {n}") for n in (STORED_AFTER, ADDED_AFTER))
        with text.only_if(span.has(stored)):
            span.store(stored, turn)
        with text.only_if(text.set(f"icmp slt i64 {now}, %next_count")):
            span.unpack_next(now)
        with text.only_if(span.has(now)):
            span.multiply(now, turn)
        with text.only_if(span.has(added)) as where:
            more = span.add(added, outs)
        outs = where.joined(FLOATS, outs, more)
    span.adder.store(span.whole, loop.close(outs))
    text.do("ret void")
    text.raw("}")


class _Span:
    """Its operations by groups, counted from %begin."""

    def __init__(self, text: Text, form: Format, kind: str, rows: int) -> None:
        self._text, self._form, self._num_rows = text, form, rows
        self.adder = _Rows(text, form, Vnni(LANES), rows, kind)
        self.whole = Pass(range(rows), range(0, LANES, LANES), False)
        self.count = text.set("sub i64 %end, %begin")
        self._next = [
            text.at(f"%{plane}", text.set(f"mul i64 %end, {size}"))
            for plane, size in zip(PLANES, bytes_of_group(form)[:2], strict=False)
        ]

    def has(self, group: str) -> str:
        return self._text.set(f"icmp ult i64 {group}, {self.count}")

    def multiply(self, group: str, turn: int) -> None:
        """Begins a group's products; there is a tile of sums for each turn."""
        text, parts = self._text, self._form.parts
        before = text.set(f"add i64 %begin, {group}")
        x = text.at("%x", text.set(f"mul i64 {before}, {CODE_BYTES * self._num_rows}"))
        weights = text.at("%weights", text.set(f"mul i64 {group}, {WEIGHT_BYTES}"))
        product = "tdpbssd" if self._form.offset else "tdpbsud"
        for part in range(parts):
            tile = SUMS_TILE + turn * parts + part
            self._load(WEIGHTS_TILE, text.at(weights, part * WEIGHT_BYTES // parts), SUM_BYTES)
            self._load(ROWS_TILE, text.at(x, part * GROUP // parts), GROUP)
            text.do(f"call void @llvm.x86.tilezero(i8 {tile})")
            operands = f"i8 {tile}, i8 {ROWS_TILE}, i8 {WEIGHTS_TILE}"
            text.do(f"call void @llvm.x86.{product}({operands})")

    def _load(self, tile: int, place: str, stride: int) -> None:
        self._text.do(f"call void @llvm.x86.tileloadd64(i8 {tile}, ptr {place}, i64 {stride})")

    def store(self, group: str, turn: int) -> None:
        text, parts = self._text, self._form.parts
        sums = self._slot(group)
        for part in range(parts):
            tile, at = SUMS_TILE + turn * parts + part, text.at(sums, part * PRODUCT_BYTES)
            text.do(f"call void @llvm.x86.tilestored64(i8 {tile}, ptr {at}, i64 {SUM_BYTES})")

    def _slot(self, group: str) -> str:
        """Where sums lie until they are added: two places, as a third would have the same last 12
        bits of its address as other memory in use."""
        odd = self._text.set(f"and i64 {group}, {SLOTS - 1}")
        return self._text.at(
            "%sums", self._text.set(f"mul i64 {odd}, {self._form.parts * PRODUCT_BYTES}")
        )

    def unpack_next(self, group: str) -> None:
        after = self._text.set(f"add i64 {group}, 1")
        planes = ", ".join(f"ptr {plane}" for plane in self._next)
        span = f"i64 {group}, i64 {after}"
        self._text.do(f"call void @unpack({planes}, {span}, ptr %next_weights)")

    def add(self, group: str, outs: Sequence[str]) -> list[str]:
        self.adder.sums = self._slot(group)
        return self.adder.add(self.whole, self._text.set(f"add i64 %begin, {group}"), outs)


class _Rows(Tile):
    """Scales and adds sums that tiles made."""

    sums = ""  # the address of the current group's

    def _start(self, row: Row, lane: int) -> str:
        place = self._text.at("%bias", self._text.set(f"mul i64 %start_stride, {row}"))
        return self._text.load(self._floats, place)

    def _sums(
        self, x: str, fields: str, group: str, this: Pass, part: int
    ) -> dict[tuple[Row, int], str]:
        text = self._text
        wholes: dict[tuple[Row, int], str] = {}
        for index, row in enumerate(this.rows):
            place = text.at(self.sums, part * PRODUCT_BYTES + 2 * index * SUM_BYTES)
            two = [text.load(self._words, text.at(place, at), 64) for at in (0, SUM_BYTES)]
            wholes[row, 0] = self._whole(*two)
        return wholes


def _declare(text: Text) -> None:
    text.raw("declare i64 @llvm.smax.i64(i64, i64)")
    text.raw("declare void @llvm.x86.ldtilecfg(ptr)")
    text.raw("declare void @llvm.x86.tilerelease()")
    text.raw("declare void @llvm.x86.tilezero(i8 immarg)")
    for name in ("tileloadd64", "tilestored64"):
        text.raw(f"declare void @llvm.x86.{name}(i8 immarg, ptr, i64)")
    for name in ("tdpbssd", "tdpbsud"):
        text.raw(f"declare void @llvm.x86.{name}(i8 immarg, i8 immarg, i8 immarg)")
