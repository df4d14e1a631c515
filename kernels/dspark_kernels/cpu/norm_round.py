"""Adding to the residual stream, RMSNorm and rounding in one, as every matrix's input is made.

The squares of a row add up in 16 lanes by fma, the lanes in a tree; the norm is
((x · (1 / sqrt(mean + eps))) · weight), each step rounded.
"""

import torch

from dspark_kernels.cpu.exact import fma, sqrt
from dspark_kernels.cpu.float_text import FLOATS, LANES, numbers, tree_sum, write_tree
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text
from dspark_kernels.cpu.rounded import GROUP, RoundedRows, empty_rounded, round_rows_reference
from dspark_kernels.cpu.rounded_text import round_group, write_place
from dspark_kernels.cpu.runtime import Op, current


def norm_round(
    x: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[RoundedRows, torch.Tensor, torch.Tensor]:
    """x, update float32 [N, K], weight float32 [K] -> the norm of the sum rounded, it, the sum."""
    runtime = current()
    if runtime is None:
        return norm_round_reference(x, update, weight, eps)
    out, total = empty_rounded(*x.shape), x.clone(memory_format=torch.contiguous_format)
    normed = torch.empty_like(total)
    update = None if update is None else update.contiguous()
    runtime.run([norm_round_op(total, update, weight, eps, out.data, normed=normed)], len(x))
    return out, normed, total


def norm_round_op(
    total: torch.Tensor,
    update: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    rounded: torch.Tensor,
    *,
    normed: torch.Tensor | None = None,
    tap: torch.Tensor | None = None,
) -> Op:
    """`update` is added to `total` in place; `normed`, `tap` [N, K] take the norm and the sum."""
    width = total.shape[1]
    bits = int(torch.tensor(eps).view(torch.int32))
    tables = [t for table in (total, update, normed, tap) for t in _table(table)]
    return Op("norm_round", 0, 1, (weight, rounded, width // GROUP, bits, width, *tables))


def _table(table: torch.Tensor | None) -> tuple[torch.Tensor | int, int]:
    """Its address and the bytes from row to row."""
    return (0, 0) if table is None else (table, 4 * table.stride(0))


def norm_round_reference(
    x: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[RoundedRows, torch.Tensor, torch.Tensor]:
    """As norm_round, in torch."""
    total = x if update is None else x + update
    normed = norm_reference(total, weight, eps)
    return round_rows_reference(normed), normed, total


def norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., K], K a multiple of 16."""
    squares = torch.zeros(*x.shape[:-1], LANES)
    for lanes in x.split(LANES, dim=-1):
        squares = fma(lanes, lanes, squares)
    mean = tree_sum(squares).unsqueeze(-1) / float(x.shape[-1])
    return x * (1.0 / sqrt(mean + eps)) * weight


def write_norm_round(text: Text) -> None:
    text.raw("define void @norm_round(ptr %own, ptr %step, i64 %first, i64 %last) {")
    weight, rounded = text.argument("%own", 0, "ptr"), text.argument("%own", 1, "ptr")
    groups, eps = text.argument("%own", 2), text.argument("%own", 3, "float")
    width = text.set(f"sitofp i64 {text.argument('%own', 4)} to float")
    tables = [
        (text.argument("%own", 5 + 2 * i, "ptr"), text.argument("%own", 6 + 2 * i))
        for i in range(4)
    ]
    has = [text.set(f"icmp ne ptr {address}, null") for address, _ in tables]
    rows = text.load("i64", "%step", 8)
    size = text.set(f"shl i64 {groups}, 7")
    loop = Loop(text, "%first", "%last")
    total, update, normed, tap = (
        text.at(address, text.set(f"mul i64 {stride}, {loop.index}")) for address, stride in tables
    )
    squares = _sum_and_squares(text, size, total, (update, has[1]), (tap, has[3]))
    scale = text.splat("float", LANES, write_scale(text, squares, width, eps))
    place = write_place(text, rounded, groups, loop.index, rows)
    each = Loop(text, "0", groups)
    offset = text.set(f"shl i64 {each.index}, 7")
    halves = [
        _normed(text, text.at(total, offset), text.at(weight, offset), scale, at) for at in (0, 64)
    ]
    copy, after = text.fresh("copy"), text.fresh("after")
    text.do(f"br i1 {has[2]}, label %{copy}, label %{after}")
    text.label(copy)
    target = text.at(normed, offset)
    for at, half in zip((0, 64), halves, strict=True):
        text.store(FLOATS, half, text.at(target, at))
    text.do(f"br label %{after}")
    text.label(after)
    round_group(text, halves, place, each.index)
    each.close()
    loop.close()
    text.do("ret void")
    text.raw("}")


def _normed(text: Text, total: str, weight: str, scale: str, at: int) -> str:
    value = text.set(f"fmul {FLOATS} {text.load(FLOATS, text.at(total, at))}, {scale}")
    return text.set(f"fmul {FLOATS} {value}, {text.load(FLOATS, text.at(weight, at))}")


def _sum_and_squares(
    text: Text, size: str, total: str, update: tuple[str, str], tap: tuple[str, str]
) -> str:
    """Adds and copies if there is a residual and a copy; returns the squares of 16 lanes."""
    lanes = Loop(text, "0", size, [Carried(FLOATS, numbers(0.0))], step="64")
    place = text.at(total, lanes.index)
    before, add, plain, after = (text.fresh(s) for s in ("before", "add", "plain", "after"))
    value = text.load(FLOATS, place)
    text.do(f"br label %{before}")
    text.label(before)
    text.do(f"br i1 {update[1]}, label %{add}, label %{plain}")
    text.label(add)
    more = text.load(FLOATS, text.at(update[0], lanes.index))
    added = text.set(f"fadd {FLOATS} {value}, {more}")
    text.store(FLOATS, added, place)
    text.do(f"br label %{plain}")
    text.label(plain)
    value = text.set(f"phi {FLOATS} [{value}, %{before}], [{added}, %{add}]")
    copy = text.fresh("copy")
    text.do(f"br i1 {tap[1]}, label %{copy}, label %{after}")
    text.label(copy)
    text.store(FLOATS, value, text.at(tap[0], lanes.index))
    text.do(f"br label %{after}")
    text.label(after)
    (squares,) = lanes.close([text.fma(LANES, value, value, lanes.values[0])])
    return squares


def write_scale(text: Text, squares: str, width: str, eps: str) -> str:
    """1 / sqrt(mean + eps)."""
    mean = text.set(f"fdiv float {write_tree(text, squares)}, {width}")
    inside = text.set(f"fadd float {mean}, {eps}")
    root = text.set(f"call float @llvm.sqrt.f32(float {inside})")
    return text.set(f"fdiv float 1.0, {root}")
