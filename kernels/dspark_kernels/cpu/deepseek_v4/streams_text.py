"""DeepSeek-V4's streams in LLVM's text: four of them, mixed by a 4 x 4 matrix that is 16 lanes."""

from collections.abc import Sequence

from dspark_kernels.cpu.deepseek_v4.text import (
    CHUNK_BYTES,
    as_float,
    begin,
    end,
    fadd,
    fmul,
    load,
    norm,
    shuffled,
    sigmoid,
    splat,
    store,
    times,
)
from dspark_kernels.cpu.float_text import FLOATS, LANES, numbers, write_exp
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text

STREAMS = 4
MIXES = 32  # floats of a row of projections, and of a row of coefficients
BESIDE_ROWS, BESIDE_COLUMNS = (1, 2), (4, 8)  # lanes that differ in these bits are added up
POST = 4  # first lane of the coefficients of a sub-layer's output


def write_open_streams(text: Text) -> None:
    """Words: streams, projections [N, 32], their scales and biases [2, 32], weight of the norm, x
    [N, H], coefficients [N, 32], chunks of H, Sinkhorn steps, eps of the streams, eps. A unit is a
    row: x is the norm of a sum of streams; coefficients are those by which write_back_streams
    mixes."""
    streams, projected, factors, weight, x, kept, chunks, steps, own_eps, eps = begin(
        text, "open_streams", "p p p p p p i i i i"
    )
    own_eps, eps = as_float(text, own_eps), as_float(text, eps)
    units = Loop(text, "%first", "%last")
    place = times(text, units.index, 4 * MIXES)
    source, target = text.at(projected, place), text.at(kept, place)
    opened = _scaled(text, source, factors, 0)
    opened = sigmoid(text, write_exp(text, text.set(f"fneg {FLOATS} {opened}")))
    text.store(FLOATS, fmul(text, opened, numbers(2.0)), target)
    mix = _sinkhorn(text, _scaled(text, source, factors, 2 * STREAMS), steps, own_eps)
    text.store(FLOATS, mix, text.at(target, CHUNK_BYTES))
    shares = _lanes(text, fadd(text, opened, splat(text, own_eps)), range(STREAMS))
    _collapse(text, units.index, streams, shares, weight, (x, x), chunks, eps)
    units.close()
    end(text)


def write_close_streams(text: Text) -> None:
    """Words: as of open_streams, without coefficients and steps; before x the sum [N, H] that it
    is the norm of."""
    streams, projected, factors, weight, summed, x, chunks, own_eps, eps = begin(
        text, "close_streams", "p p p p p p i i i"
    )
    own_eps, eps = as_float(text, own_eps), as_float(text, eps)
    units = Loop(text, "%first", "%last")
    source = text.at(projected, times(text, units.index, 4 * MIXES))
    opened = text.set(f"fneg {FLOATS} {_scaled(text, source, factors, 0)}")
    pre = fadd(text, sigmoid(text, write_exp(text, opened)), splat(text, own_eps))
    shares = _lanes(text, pre, range(STREAMS))
    _collapse(text, units.index, streams, shares, weight, (summed, x), chunks, eps)
    units.close()
    end(text)


def write_write_back_streams(text: Text) -> None:
    """Words: streams, the sub-layer's output [N, H], coefficients [N, 32], chunks. A unit is a row:
    each stream becomes its share of the output, and of all streams in order; in place."""
    streams, y, kept, chunks = begin(text, "write_back_streams", "p p p i")
    size = times(text, chunks, CHUNK_BYTES)
    units = Loop(text, "%first", "%last")
    source = text.at(kept, times(text, units.index, 4 * MIXES))
    post = _lanes(text, text.load(FLOATS, source), range(POST, POST + STREAMS))
    mix = _lanes(text, text.load(FLOATS, text.at(source, CHUNK_BYTES)), range(STREAMS**2))
    mine = _streams(text, streams, units.index, size)
    out = text.at(y, times(text, units.index, size))
    loop = Loop(text, "0", chunks)
    said = load(text, out, loop.index)
    before = [load(text, each, loop.index) for each in mine]
    for index, each in enumerate(mine):
        total = fmul(text, post[index], said)
        for other, stream in enumerate(before):
            total = text.fma(LANES, mix[STREAMS * other + index], stream, total)
        store(text, total, each, loop.index)
    loop.close()
    units.close()
    end(text)


def write_mean_streams(text: Text) -> None:
    """Words: streams, out, bytes of its rows, chunks. A unit is a row."""
    streams, out, stride, chunks = begin(text, "mean_streams", "p p i i")
    size = times(text, chunks, CHUNK_BYTES)
    units = Loop(text, "%first", "%last")
    mine = _streams(text, streams, units.index, size)
    target = text.at(out, times(text, units.index, stride))
    loop = Loop(text, "0", chunks)
    first, second, third, fourth = (load(text, each, loop.index) for each in mine)
    total = fadd(text, fadd(text, first, second), fadd(text, third, fourth))
    store(text, fmul(text, total, numbers(1.0 / STREAMS)), target, loop.index)
    loop.close()
    units.close()
    end(text)


def _scaled(text: Text, source: str, factors: str, first: int) -> str:
    """16 projections from number `first` on, times their scales, plus their biases."""
    scale, base = (
        text.load(FLOATS, text.at(factors, 4 * (first + row * MIXES))) for row in range(2)
    )
    return fadd(text, fmul(text, text.load(FLOATS, text.at(source, 4 * first)), scale), base)


def _sinkhorn(text: Text, mix: str, steps: str, eps: str) -> str:
    """Softmax of each row; columns, then `steps` - 1 times rows and columns, over their sums."""
    most = mix
    for bit in BESIDE_ROWS:
        other = shuffled(text, most, [lane ^ bit for lane in range(LANES)])
        more = text.set(f"fcmp ogt {FLOATS} {other}, {most}")
        most = text.set(f"select <{LANES} x i1> {more}, {FLOATS} {other}, {FLOATS} {most}")
    power = write_exp(text, text.set(f"fsub {FLOATS} {mix}, {most}"))
    shares = text.set(f"fdiv {FLOATS} {power}, {_sums(text, power, BESIDE_ROWS)}")
    added = splat(text, eps)
    mix = _shared(text, fadd(text, shares, added), BESIDE_COLUMNS, added)
    loop = Loop(text, "1", steps, [Carried(FLOATS, mix)])
    mix = _shared(text, loop.values[0], BESIDE_ROWS, added)
    return loop.close([_shared(text, mix, BESIDE_COLUMNS, added)])[0]


def _shared(text: Text, mix: str, beside: Sequence[int], eps: str) -> str:
    return text.set(f"fdiv {FLOATS} {mix}, {fadd(text, _sums(text, mix, beside), eps)}")


def _sums(text: Text, x: str, beside: Sequence[int]) -> str:
    for bit in beside:
        x = fadd(text, x, shuffled(text, x, [lane ^ bit for lane in range(LANES)]))
    return x


def _lanes(text: Text, x: str, lanes: Sequence[int]) -> list[str]:
    """Each of these lanes, in all lanes."""
    return [shuffled(text, x, [lane] * LANES) for lane in lanes]


def _streams(text: Text, streams: str, row: str, size: str) -> list[str]:
    first = text.at(streams, times(text, times(text, row, size), STREAMS))
    return [text.at(first, times(text, size, index)) for index in range(STREAMS)]


def _collapse(
    text: Text,
    row: str,
    streams: str,
    pre: Sequence[str],
    weight: str,
    outs: tuple[str, str],
    chunks: str,
    eps: str,
) -> None:
    """`outs`: the sum of the streams, each times its share, and its norm."""
    size = times(text, chunks, CHUNK_BYTES)
    mine, place = _streams(text, streams, row, size), times(text, row, size)
    summed, normed = (text.at(out, place) for out in outs)
    loop = Loop(text, "0", chunks, [Carried(FLOATS, "zeroinitializer")])
    total = fmul(text, pre[0], load(text, mine[0], loop.index))
    for share, stream in zip(pre[1:], mine[1:], strict=True):
        total = text.fma(LANES, share, load(text, stream, loop.index), total)
    store(text, total, summed, loop.index)
    squares = loop.close([text.fma(LANES, total, total, loop.values[0])])[0]
    norm(text, summed, normed, weight, chunks, eps, squares)
