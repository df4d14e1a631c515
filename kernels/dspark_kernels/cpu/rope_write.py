"""Norms of query and key heads, RoPE, and the write of keys and values into the pool, in one.

Norms as norm_round's; first' = first · cos - second · sin, second' = second · cos + first · sin,
each product rounded; queries are then multiplied by the attention's scale.
"""

from typing import NamedTuple

import torch

from dspark_kernels.cpu.float_text import FLOATS, LANES, numbers
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text
from dspark_kernels.cpu.norm_round import norm_reference, write_scale
from dspark_kernels.cpu.runtime import Op, current
from dspark_kernels.cpu.step_words import MAX_HEAD_DIM, Pages, Place, index_of, step_words
from dspark_kernels.paged_cache import PAGE


class Heads(NamedTuple):
    """Sizes of a layer's attention; `norms` are the weights [D] of query and key and the eps."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    norms: tuple[torch.Tensor, torch.Tensor, float] | None = None


def rope_write(
    qkv: torch.Tensor,
    cache: Pages,
    layer: int,
    place: Place,
    rotary: tuple[torch.Tensor, torch.Tensor],
    heads: Heads,
) -> torch.Tensor:
    """qkv float32 [N, (heads + 2 kv_heads) D]; the others as in step_words; writes into `cache`.

    -> queries [N, heads, D].
    """
    runtime = current()
    if runtime is None:
        return rope_write_reference(qkv, cache, layer, place, rotary, heads)
    qkv = qkv.contiguous()
    out = torch.empty(len(qkv), heads.num_heads, heads.head_dim)
    step = step_words(place, rotary, cache)
    runtime.run([rope_write_op(qkv, out, layer, heads)], len(qkv), step)
    return out


def rope_write_op(qkv: torch.Tensor, queries: torch.Tensor, layer: int, heads: Heads) -> Op:
    """A unit is a head of a row; heads may be 0, as for a drafter's context."""
    num_all = heads.num_heads + 2 * heads.num_kv_heads
    query_norm, key_norm, eps = heads.norms or (0, 0, 0.0)
    numbers_of = torch.tensor([eps, heads.scale]).view(torch.int32).tolist()
    sizes = (num_all, heads.num_heads, heads.num_kv_heads, 4 * heads.head_dim)
    tables = (qkv, 4 * qkv.stride(0), queries, query_norm, key_norm)
    return Op("rope_write", 0, num_all, (*tables, *sizes, layer, *numbers_of), num_all)


def rope_write_reference(
    qkv: torch.Tensor,
    cache: Pages,
    layer: int,
    place: Place,
    rotary: tuple[torch.Tensor, torch.Tensor],
    heads: Heads,
) -> torch.Tensor:
    """As rope_write, in torch."""
    sizes = [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads]
    query, key, value = qkv.unflatten(1, (-1, heads.head_dim)).split(sizes, dim=1)
    if heads.norms is not None:
        query = norm_reference(query, heads.norms[0], heads.norms[2])
        key = norm_reference(key, heads.norms[1], heads.norms[2])
    cos, sin = (table[place.positions].unsqueeze(1) for table in rotary)
    where, cached = cache.of_rows(place), cache.cached[layer]
    cached[0][where], cached[1][where] = _turned(key, cos, sin), value
    return _turned(query, cos, sin) * heads.scale


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.chunk(2, dim=-1)[0], sin.chunk(2, dim=-1)[0]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def write_rope_write(text: Text) -> None:
    text.raw("define void @rope_write(ptr %own, ptr %step, i64 %first, i64 %last) {")
    qkv, stride = text.argument("%own", 0, "ptr"), text.argument("%own", 1)
    queries = text.argument("%own", 2, "ptr")
    norms = [text.argument("%own", index, "ptr") for index in (3, 4)]
    num_all, num_heads, num_kv_heads, size = (text.argument("%own", i) for i in (5, 6, 7, 8))
    eps, scale = text.argument("%own", 10, "float"), text.argument("%own", 11, "float")
    layer = write_layer(text, text.argument("%own", 9))
    half = text.set(f"lshr i64 {size}, 1")
    count = text.set(f"sitofp i64 {text.set(f'lshr i64 {size}, 2')} to float")
    text.do(f"%scratch = alloca [{4 * MAX_HEAD_DIM} x i8], align 64")
    loop = Loop(text, "%first", "%last")
    row = text.set(f"udiv i64 {loop.index}, {num_all}")
    head = text.set(f"urem i64 {loop.index}, {num_all}")
    position = text.load("i64", write_entry(text, "positions", row), 8)
    offset = text.set(f"mul i64 {position}, {size}")
    source = text.at(
        text.at(qkv, text.set(f"mul i64 {row}, {stride}")), text.set(f"mul i64 {head}, {size}")
    )
    is_query = text.set(f"icmp slt i64 {head}, {num_heads}")
    kv = text.set(f"sub i64 {head}, {num_heads}")
    is_value = text.set(f"icmp sge i64 {kv}, {num_kv_heads}")
    kv_head = text.set(f"urem i64 {kv}, {num_kv_heads}")
    slot = text.load("i64", write_entry(text, "slots", row), 8)
    page, inside = write_page(text, write_table(text, slot), position)
    cached = text.at(write_head(text, layer, kv_head), page)
    cached = text.at(cached, text.set(f"mul i64 {inside}, {size}"))
    values = text.at(cached, write_word(text, "value_bytes"))
    own_row = text.set(f"add i64 {text.set(f'mul i64 {row}, {num_heads}')}, {head}")
    query = text.at(queries, text.set(f"mul i64 {own_row}, {size}"))
    copy, turn, after = (text.fresh(stem) for stem in ("copy", "turn", "after"))
    text.do(f"br i1 {is_value}, label %{copy}, label %{turn}")
    text.label(copy)
    lanes = Loop(text, "0", size, step="64")
    text.store(
        FLOATS, text.load(FLOATS, text.at(source, lanes.index)), text.at(values, lanes.index)
    )
    lanes.close()
    text.do(f"br label %{after}")
    text.label(turn)
    target = text.set(f"select i1 {is_query}, ptr {query}, ptr {cached}")
    norm = text.set(f"select i1 {is_query}, ptr {norms[0]}, ptr {norms[1]}")
    by = text.set(f"select i1 {is_query}, float {scale}, float 1.0")
    normed = _normed(text, source, norm, size, count, eps)
    _turn(text, normed, target, half, offset, text.splat("float", LANES, by))
    text.do(f"br label %{after}")
    text.label(after)
    loop.close()
    text.do("ret void")
    text.raw("}")


def _normed(text: Text, source: str, norm: str, size: str, count: str, eps: str) -> str:
    """The address of the head's numbers after its norm: `source` itself without a norm."""
    here, there, after = (text.fresh(stem) for stem in ("plain", "normed", "after"))
    scratch = "%scratch"
    text.do(f"br label %{here}")
    text.label(here)
    has_norm = text.set(f"icmp ne ptr {norm}, null")
    text.do(f"br i1 {has_norm}, label %{there}, label %{after}")
    text.label(there)
    squares = Loop(text, "0", size, [Carried(FLOATS, numbers(0.0))], step="64")
    value = text.load(FLOATS, text.at(source, squares.index))
    (total,) = squares.close([text.fma(LANES, value, value, squares.values[0])])
    scales = text.splat("float", LANES, write_scale(text, total, count, eps))
    lanes = Loop(text, "0", size, step="64")
    value = text.load(FLOATS, text.at(source, lanes.index))
    value = text.set(f"fmul {FLOATS} {value}, {scales}")
    factor = text.load(FLOATS, text.at(norm, lanes.index))
    text.store(FLOATS, text.set(f"fmul {FLOATS} {value}, {factor}"), text.at(scratch, lanes.index))
    lanes.close()
    last = text.fresh("last")
    text.do(f"br label %{last}")
    text.label(last)
    text.do(f"br label %{after}")
    text.label(after)
    return text.set(f"phi ptr [{source}, %{here}], [{scratch}, %{last}]")


def _turn(text: Text, source: str, target: str, half: str, offset: str, by: str) -> None:
    cosines, sines = (text.at(write_word(text, name, "ptr"), offset) for name in ("cos", "sin"))
    lanes = Loop(text, "0", half, step="64")
    first_at, cos_at, sin_at, out = (
        text.at(base, lanes.index) for base in (source, cosines, sines, target)
    )
    first, second = text.load(FLOATS, first_at), text.load(FLOATS, text.at(first_at, half))
    cos, sin = text.load(FLOATS, cos_at), text.load(FLOATS, sin_at)

    def product(a: str, b: str) -> str:
        return text.set(f"fmul {FLOATS} {a}, {b}")

    upper = text.set(f"fsub {FLOATS} {product(first, cos)}, {product(second, sin)}")
    lower = text.set(f"fadd {FLOATS} {product(second, cos)}, {product(first, sin)}")
    text.store(FLOATS, product(upper, by), out)
    text.store(FLOATS, product(lower, by), text.at(out, half))
    lanes.close()


def write_word(text: Text, name: str, kind: str = "i64") -> str:
    return text.argument("%step", index_of(name), kind)


def write_entry(text: Text, name: str, row: str) -> str:
    return text.at(write_word(text, name, "ptr"), text.set(f"shl i64 {row}, 3"))


def write_layer(text: Text, layer: str) -> str:
    """The address of a layer's keys."""
    offset = text.set(f"mul i64 {layer}, {write_word(text, 'layer_bytes')}")
    return text.at(write_word(text, "cache", "ptr"), offset)


def write_head(text: Text, layer: str, kv_head: str) -> str:
    """The address of a head's first key in the first page."""
    by_head = text.set(f"mul i64 {kv_head}, {write_word(text, 'head_bytes')}")
    return text.at(layer, by_head)


def write_table(text: Text, slot: str) -> str:
    """The address of a slot's pages."""
    by_slot = text.set(f"mul i64 {slot}, {write_word(text, 'table_bytes')}")
    return text.at(write_word(text, "tables", "ptr"), by_slot)


def write_page(text: Text, table: str, position: str) -> tuple[str, str]:
    """A position's page, in bytes behind the first one, and its place there."""
    column = text.set(f"udiv i64 {position}, {PAGE}")
    entry = text.load("i32", text.at(table, text.set(f"shl i64 {column}, 2")), 4)
    page = text.set(f"zext i32 {entry} to i64")
    by_page = text.set(f"mul i64 {page}, {write_word(text, 'page_bytes')}")
    return by_page, text.set(f"urem i64 {position}, {PAGE}")
