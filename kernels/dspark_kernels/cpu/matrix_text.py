"""Stored weights times rounded rows in LLVM's text: one function for each format and variant.

A tile of up to eight rows goes through a block of 16 outputs in passes: some of its rows, some of
the block's lanes, as many as the registers hold. With AMX many rows go another way (amx_text.py).
"""

from collections.abc import Callable
from functools import partial

from dspark_kernels.cpu import amx_text
from dspark_kernels.cpu.dot_text import Dot, make_dot
from dspark_kernels.cpu.formats import FORMATS, Format
from dspark_kernels.cpu.llvm_text import Loop, Text, vector
from dspark_kernels.cpu.rounded import TILE_ROWS
from dspark_kernels.cpu.stored_weight import LANES, PLANES
from dspark_kernels.cpu.tile_text import PARAMETERS, Block, Pass, Tile, bytes_of_group, call_by_rows

# rows of a pass, and native vectors of its lanes, by how wide a vector is
PASSES = {16: (8, 1), 8: (4, 1), 4: (4, 2)}
FEW_ROWS = 2  # this many take all lanes of a block at once, whatever the width


def matrix_text(kind: str, variant: str) -> str:
    """The text of `matrix_{kind}`; its words are those of multiply_op."""
    form, text = FORMATS[kind], Text()
    dot, name = make_dot(variant, form.bits), f"void @matrix_{kind}"
    if variant == "generic":
        _any_tile(text, form, dot, kind)
        _matrix(text, name, form, _multiply_any)
    elif variant == "amx":
        most = min(amx_text.few_rows(form), TILE_ROWS)
        _tiles(text, form, dot, kind, most)
        multiply = partial(_multiply, most=most)
        _matrix(text, "internal void @in_vectors", form, multiply)
        amx_text.write_amx(text, form, kind)
        _matrix(text, "internal void @in_tiles", form, amx_text.multiply_block, ", ptr %memory")
        amx_text.write_choice(text, name, form)
    else:
        _tiles(text, form, dot, kind, TILE_ROWS)
        _matrix(text, name, form, _multiply)
    text.raw("declare i64 @llvm.smin.i64(i64, i64)")
    text.raw("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
    kind_of_lanes = vector("float", dot.lanes)
    for line in dot.declarations:
        text.raw(line)
    text.raw(
        f"declare {kind_of_lanes} @llvm.fma.v{dot.lanes}f32"
        f"({kind_of_lanes}, {kind_of_lanes}, {kind_of_lanes})"
    )
    return str(text)


def _matrix(
    text: Text,
    name: str,
    form: Format,
    multiply: Callable[[Text, Block], None],
    more: str = "",
) -> None:
    """Blocks of outputs outside, so that a weight comes from memory once for all rows."""
    text.raw(f"define {name}(ptr %own, ptr %step, i64 %first, i64 %last{more}) {{")
    x, out = text.argument("%own", 0, "ptr"), text.argument("%own", 1, "ptr")
    stride, groups = text.argument("%own", 2), text.argument("%own", 3)
    bias, bias_step = text.argument("%own", 4, "ptr"), text.argument("%own", 5)
    planes = [text.argument("%own", 6 + index, "ptr") for index in range(len(PLANES))]
    rows = text.load("i64", "%step", 8)
    sizes = [text.set(f"mul i64 {groups}, {size}") for size in bytes_of_group(form)]
    supers = text.set(f"lshr i64 {groups}, 3")
    sizes += [text.set(f"mul i64 {supers}, {2 * LANES}")] * 2
    blocks = Loop(text, "%first", "%last")
    here = [
        text.at(plane, text.set(f"mul i64 {blocks.index}, {size}"))
        for plane, size in zip(planes, sizes, strict=True)
    ]
    bias_here = text.at(bias, text.set(f"mul i64 {blocks.index}, {bias_step}"))
    out_here = text.at(out, text.set(f"mul i64 {blocks.index}, {4 * LANES}"))
    multiply(text, Block(x, out_here, stride, groups, bias_here, here, rows, blocks.index))
    blocks.close()
    text.do("ret void")
    text.raw("}")


def _multiply(text: Text, block: Block, most: int = TILE_ROWS) -> None:
    tiles = Loop(text, "0", block.rows, step=str(TILE_ROWS))
    tile, left = block.tile(text, tiles.index)
    call_by_rows(text, "tile", left, tile.arguments, most)
    tiles.close()


def _multiply_any(text: Text, block: Block) -> None:
    tiles = Loop(text, "0", block.rows, step=str(TILE_ROWS))
    tile, left = block.tile(text, tiles.index)
    count = text.set(f"call i64 @llvm.smin.i64(i64 {left}, i64 {TILE_ROWS})")
    text.do(f"call void @tile_of_any({tile.arguments}, i64 {count})")
    tiles.close()


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


def _tiles(text: Text, form: Format, dot: Dot, kind: str, most: int) -> None:
    """A function for each number of rows."""
    for rows in range(1, most + 1):
        text.raw(f"define internal void @tile{rows}({PARAMETERS}) noinline {{")
        for each in _passes(rows, dot):
            Tile(text, form, dot, rows, kind).run(each)
        text.do("ret void")
        text.raw("}")


def _any_tile(text: Text, form: Format, dot: Dot, kind: str) -> None:
    """Row by row, for any number of rows: little text, for a variant that no processor prefers."""
    text.raw(f"define internal void @tile_of_any({PARAMETERS}, i64 %rows) noinline {{")
    loop = Loop(text, "0", "%rows")
    Tile(text, form, dot, "%rows", kind).run(Pass([loop.index], range(0, LANES, dot.lanes), True))
    loop.close()
    text.do("ret void")
    text.raw("}")
