"""RMSNorm and rotation of parts of rows, as norm_rows and rotate_rows of cpu/deepseek_v4.

A program is a part of a row, as a head is: its squares are added in 16 lanes.
"""

import torch

from dspark_kernels.backend import jit, next_power_of_2, tl
from dspark_kernels.builds import KernelBuild
from dspark_kernels.deepseek_v4.exact_math import LANES, UNFUSED, inverse_root
from dspark_kernels.deepseek_v4.places import ROW_WORDS

WIDEST = 1024  # numbers of a row at once


def norm_turn(
    x: torch.Tensor,
    out: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    parts: int = 1,
    turn: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    *,
    norms: bool = True,
) -> torch.Tensor:
    """x, out [N, parts * D], rows may be further apart; weight [D] or None for ones. `turn`: the
    rows of the pass int64 [N, words], cos and sin [positions, pairs]: the last dimensions of each
    part turn by its row's position. `norms`: if not, parts only turn. out may be x."""
    num_rows, width = len(x), x.shape[1] // parts
    rows, cos, sin = turn or (None, None, None)
    pairs = 0 if cos is None else cos.shape[1]
    norm_turn_kernel[(num_rows, parts)](
        x,
        out,
        weight,
        rows,
        cos,
        sin,
        eps,
        x.stride(0),
        out.stride(0),
        WIDTH=width,
        PAIRS=pairs,
        BLOCK=min(WIDEST, next_power_of_2(width)),
        PAIR_BLOCK=next_power_of_2(max(pairs, 1)),
        NORMS=norms,
        num_warps=2,
        **UNFUSED,
    )
    return out


@jit
def norm_turn_kernel(
    x: tl.tensor,  # [N, parts * WIDTH]
    out: tl.tensor,
    weight: tl.tensor,  # [WIDTH]
    rows: tl.tensor,  # [N, words], positions first
    cos: tl.tensor,  # [positions, PAIRS]
    sin: tl.tensor,
    eps: tl.tensor,
    x_stride: tl.tensor,
    out_stride: tl.tensor,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIR_BLOCK: tl.constexpr,
    NORMS: tl.constexpr,
) -> None:
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    source, target = x + row * x_stride + part * WIDTH, out + row * out_stride + part * WIDTH
    position = row
    if PAIRS > 0:
        position = tl.load(rows + row * ROW_WORDS)
    factor = eps
    if NORMS:
        factor = tl.sum(inverse_root(squares_of(source, WIDTH), WIDTH, eps), axis=0)
        tl.debug_barrier()  # in place: every warp has read
    turned_row(
        source, target, weight, position, cos, sin, factor, 1.0,
        WIDTH, PAIRS, BLOCK, PAIR_BLOCK, NORMS,
    )  # fmt: skip


@jit
def squares_of(source: tl.tensor, WIDTH: tl.constexpr) -> tl.tensor:
    """Sums of the squares of WIDTH numbers, in 16 lanes."""
    CHUNKS: tl.constexpr = WIDTH // LANES
    AT_ONCE: tl.constexpr = 8 if CHUNKS % 8 == 0 else (2 if CHUNKS % 2 == 0 else 1)
    squares = tl.zeros((LANES,), tl.float32)
    for begin in range(0, CHUNKS, AT_ONCE):
        for chunk in tl.static_range(AT_ONCE):
            values = tl.load(source + (begin + chunk) * LANES + tl.arange(0, LANES))
            squares = tl.fma(values, values, squares)
    return squares


@jit
def turned_row(
    source: tl.tensor,  # [WIDTH]
    target: tl.tensor,
    weight: tl.tensor,
    position: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    factor: tl.tensor,
    sign: tl.tensor,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIR_BLOCK: tl.constexpr,
    NORMS: tl.constexpr,
) -> None:
    """Numbers times a factor and their weights, the last 2 PAIRS turned by a position."""
    FIXED: tl.constexpr = WIDTH - 2 * PAIRS
    for begin in range(0, FIXED, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        inside = column < FIXED
        values = _scaled(source, weight, column, inside, factor, NORMS)
        tl.store(target + column, values, mask=inside)
    if PAIRS > 0:
        pair = tl.arange(0, PAIR_BLOCK)
        inside = pair < PAIRS
        even_at = FIXED + 2 * pair
        even = _scaled(source, weight, even_at, inside, factor, NORMS)
        odd = _scaled(source, weight, even_at + 1, inside, factor, NORMS)
        at = position * PAIRS + pair
        cosine = tl.load(cos + at, mask=inside, other=1.0)
        sine = tl.load(sin + at, mask=inside, other=0.0) * sign
        tl.debug_barrier()  # in place: everybody has read
        tl.store(target + even_at, even * cosine + odd * -sine, mask=inside)
        tl.store(target + even_at + 1, odd * cosine + even * sine, mask=inside)


@jit
def _scaled(
    source: tl.tensor,
    weight: tl.tensor,
    column: tl.tensor,
    inside: tl.tensor,
    factor: tl.tensor,
    NORMS: tl.constexpr,
) -> tl.tensor:
    values = tl.load(source + column, mask=inside, other=0.0)
    if NORMS:
        values = values * factor
    if weight is not None:
        values = values * tl.load(weight + column, mask=inside, other=0.0)
    return values


def builds() -> list[KernelBuild]:
    kernels = []
    for width, pairs, has_weight in ((16384, 0, False), (512, 32, True), (128, 32, False)):
        norms = width != 128
        signature = {"x": "*fp32", "out": "*fp32", "eps": "fp32", "x_stride": "i32"}
        signature |= {"out_stride": "i32"}
        constexprs: dict[str, int | bool | None] = {"WIDTH": width, "PAIRS": pairs, "NORMS": norms}
        constexprs |= {"BLOCK": min(WIDEST, next_power_of_2(width))}
        constexprs["PAIR_BLOCK"] = next_power_of_2(max(pairs, 1))
        pointers = {"rows": "*i64", "cos": "*fp32", "sin": "*fp32"} if pairs else {}
        if has_weight:
            pointers["weight"] = "*fp32"
        signature |= pointers
        absent = {"rows", "cos", "sin", "weight"} - pointers.keys()
        constexprs |= dict.fromkeys(sorted(absent), None)
        name = f"v4 norm and turn {width}"
        kernels.append(
            KernelBuild(name, norm_turn_kernel, signature, constexprs, num_warps=2, fuses=False)
        )
    return kernels
