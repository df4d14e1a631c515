"""The four streams of V4's blocks, as open_streams, write_back_streams and close_streams of
cpu/deepseek_v4: what a sub-layer reads of them, and what they become by its output."""

import torch

from dspark_kernels.backend import jit, tl
from dspark_kernels.builds import KernelBuild
from dspark_kernels.cpu.deepseek_v4 import streams_text
from dspark_kernels.deepseek_v4.exact_math import LANES, UNFUSED, exp, fma, inverse_root, sigmoid
from dspark_kernels.deepseek_v4.norm_turn import turned_row

MIXES = tl.constexpr(streams_text.MIXES)  # numbers of a row of projections, and of coefficients
POST = tl.constexpr(streams_text.POST)
BLOCK = 1024


def open_streams(
    streams: torch.Tensor,
    projected: torch.Tensor,
    factors: torch.Tensor,
    weight: torch.Tensor,
    x: torch.Tensor,
    mixes: torch.Tensor | None,
    steps: int,
    stream_eps: float,
    eps: float,
) -> None:
    """streams [N, 4, H], their projections [N, 32], factors and biases of these [2, 32] -> x
    [N, H], the norm of the streams' weighted sum, and the coefficients of write_back [N, 32]; None
    for those behind the last block."""
    open_streams_kernel[(len(streams),)](
        streams,
        projected,
        factors,
        weight,
        x,
        mixes,
        stream_eps,
        eps,
        WIDTH=streams.shape[2],
        STEPS=steps,
        BLOCK=BLOCK,
        num_warps=4,
        **UNFUSED,
    )


def write_back(
    streams: torch.Tensor, out: torch.Tensor, mixes: torch.Tensor, tap: torch.Tensor | None
) -> None:
    """Streams [N, 4, H] by a sub-layer's output [N, H], in place; their mean goes into tap [N, H],
    whose rows may be further apart."""
    width = streams.shape[2]
    write_back_kernel[(len(streams), -(-width // BLOCK))](
        streams,
        out,
        mixes,
        tap,
        0 if tap is None else tap.stride(0),
        WIDTH=width,
        BLOCK=BLOCK,
        num_warps=4,
        **UNFUSED,
    )


@jit
def open_streams_kernel(
    streams: tl.tensor,  # [N, 4, WIDTH]
    projected: tl.tensor,  # [N, MIXES]
    factors: tl.tensor,  # [2, MIXES]
    weight: tl.tensor,  # [WIDTH]
    x: tl.tensor,  # [N, WIDTH]
    mixes: tl.tensor,  # [N, MIXES]
    stream_eps: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A row."""
    row = tl.program_id(0).to(tl.int64)
    lane, projected = tl.arange(0, LANES), projected + row * MIXES
    opened = sigmoid(_scaled(projected + lane, factors + lane))
    if mixes is not None:
        tl.store(mixes + row * MIXES + lane, opened * 2.0)
        at = 2 * 4 + lane
        mix = tl.reshape(_scaled(projected + at, factors + at), (4, 4))
        mix = tl.reshape(_sinkhorn(mix, stream_eps, STEPS), (LANES,))
        tl.store(mixes + row * MIXES + LANES + lane, mix)
    pre = opened + stream_eps
    own, target = streams + row * 4 * WIDTH, x + row * WIDTH
    squares = tl.zeros((LANES,), tl.float32)
    CHUNKS: tl.constexpr = WIDTH // LANES
    AT_ONCE: tl.constexpr = 4 if CHUNKS % 4 == 0 else 1
    for begin in range(0, CHUNKS, AT_ONCE):
        for chunk in tl.static_range(AT_ONCE):
            at = (begin + chunk) * LANES + lane
            total = _lane(pre, 0) * tl.load(own + at)
            for stream in tl.static_range(1, 4):
                total = fma(_lane(pre, stream), tl.load(own + stream * WIDTH + at), total)
            tl.store(target + at, total)
            squares = tl.fma(total, total, squares)
    factor = tl.sum(inverse_root(squares, WIDTH, eps), axis=0)
    tl.debug_barrier()  # other threads read what was stored
    turned_row(target, target, weight, row, None, None, factor, 1.0, WIDTH, 0, BLOCK, 1, True)


@jit
def write_back_kernel(
    streams: tl.tensor,  # [N, 4, WIDTH]
    out: tl.tensor,  # [N, WIDTH]
    mixes: tl.tensor,  # [N, MIXES]
    tap: tl.tensor,  # [N, WIDTH]
    tap_stride: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Columns of a row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    own, mixes = streams + row * 4 * WIDTH + column, mixes + row * MIXES
    said = tl.load(out + row * WIDTH + column, mask=inside, other=0.0)
    first = tl.load(own, mask=inside, other=0.0)
    second = tl.load(own + WIDTH, mask=inside, other=0.0)
    third = tl.load(own + 2 * WIDTH, mask=inside, other=0.0)
    fourth = tl.load(own + 3 * WIDTH, mask=inside, other=0.0)
    pairs = tl.zeros_like(said)
    mean = tl.zeros_like(said)
    for index in tl.static_range(4):
        total = tl.load(mixes + POST + index) * said
        mix = mixes + LANES + index
        total = fma(first, tl.load(mix), total)
        total = fma(second, tl.load(mix + 4), total)
        total = fma(third, tl.load(mix + 8), total)
        total = fma(fourth, tl.load(mix + 12), total)
        tl.store(own + index * WIDTH, total, mask=inside)
        if index % 2 == 0:
            pairs = total
        else:
            mean = pairs + total if index == 1 else mean + (pairs + total)
    if tap is not None:
        tl.store(tap + row * tap_stride + column, mean * 0.25, mask=inside)


@jit
def _scaled(values: tl.tensor, factors: tl.tensor) -> tl.tensor:
    return tl.load(values) * tl.load(factors) + tl.load(factors + MIXES)


@jit
def _lane(x: tl.tensor, LANE: tl.constexpr) -> tl.tensor:
    """One of 16, exactly: the others add nothing."""
    return tl.sum(tl.where(tl.arange(0, LANES) == LANE, x, 0.0), axis=0)


@jit
def _sinkhorn(mix: tl.tensor, eps: tl.tensor, STEPS: tl.constexpr) -> tl.tensor:
    """[4, 4]: softmax of each row; columns, then STEPS - 1 times rows and columns, over their
    sums."""
    power = exp(mix - tl.max(mix, axis=1)[:, None])
    mix = tl.div_rn(power, _beside(power)) + eps
    mix = tl.div_rn(mix, _above(mix) + eps)
    for _ in range(STEPS - 1):
        mix = tl.div_rn(mix, _beside(mix) + eps)
        mix = tl.div_rn(mix, _above(mix) + eps)
    return mix


@jit
def _beside(mix: tl.tensor) -> tl.tensor:
    """Sums of rows, pairs of neighbours first; [4, 4] of equal columns."""
    sums = tl.sum(tl.sum(tl.reshape(mix, (4, 2, 2)), axis=2), axis=1)
    return tl.broadcast_to(sums[:, None], (4, 4))


@jit
def _above(mix: tl.tensor) -> tl.tensor:
    """Sums of columns likewise."""
    sums = tl.sum(tl.sum(tl.reshape(mix, (2, 2, 4)), axis=1), axis=0)
    return tl.broadcast_to(sums[None, :], (4, 4))


def builds() -> list[KernelBuild]:
    floats = ("streams", "projected", "factors", "weight", "x")
    opening = {**dict.fromkeys(floats, "*fp32"), "stream_eps": "fp32", "eps": "fp32"}
    sizes = {"WIDTH": 4096, "BLOCK": BLOCK}
    back = dict.fromkeys(("streams", "out", "mixes", "tap"), "*fp32") | {"tap_stride": "i32"}
    return [
        KernelBuild(
            "v4 open streams", open_streams_kernel, opening | {"mixes": "*fp32"},
            sizes | {"STEPS": 20}, fuses=False,
        ),
        KernelBuild(
            "v4 close streams", open_streams_kernel, opening, sizes | {"STEPS": 1, "mixes": None},
            fuses=False,
        ),
        KernelBuild("v4 write back streams", write_back_kernel, back, sizes, fuses=False),
    ]  # fmt: skip
