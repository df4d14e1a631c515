"""What a pass asks of the host about experts without a slot, and what it is told: in the host's
memory, which a card reaches by itself, so that both may be part of a captured pass."""

import torch

from dspark_kernels.backend import jit, next_power_of_2, tl, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.deepseek_v4.exact_math import UNFUSED
from dspark_kernels.deepseek_v4.route import SEGMENT_WORDS, WORDS, Segments

COLUMNS = 1024  # at once


def ask_host(
    x: torch.Tensor,
    segments: Segments,
    rows: torch.Tensor,
    words: torch.Tensor,
    pair_rows: torch.Tensor,
) -> None:
    """x [N, H] and segments into rows [N, H], words and pair_rows of the host's memory."""
    if not use_triton(x):
        return ask_host_reference(x, segments, rows, words, pair_rows)
    width, pairs = x.shape[1], len(pair_rows)
    block = min(COLUMNS, next_power_of_2(width))
    ask_host_kernel[(len(x) + 1, -(-width // block))](
        x,
        segments.words,
        segments.pair_rows,
        rows,
        words,
        pair_rows,
        len(x),
        len(words) * SEGMENT_WORDS,
        pairs,
        WIDTH=width,
        BLOCK=block,
        num_warps=4,
        **UNFUSED,
    )


def ask_host_reference(
    x: torch.Tensor,
    segments: Segments,
    rows: torch.Tensor,
    words: torch.Tensor,
    pair_rows: torch.Tensor,
) -> None:
    """As ask_host, in torch."""
    for into, of in ((rows, x), (words, segments.words), (pair_rows, segments.pair_rows)):
        into.copy_(of)


def take_answers(answers: torch.Tensor, segments: Segments, said: torch.Tensor) -> None:
    """What the host says of pairs whose expert has no slot, answers [P, H], into said [P, H]."""
    if not use_triton(said):
        return take_answers_reference(answers, segments, said)
    width = said.shape[1]
    block = min(COLUMNS, next_power_of_2(width))
    take_answers_kernel[(len(segments.words), -(-width // block))](
        answers, segments.words, said, WIDTH=width, BLOCK=block, num_warps=4, **UNFUSED
    )


def take_answers_reference(answers: torch.Tensor, segments: Segments, said: torch.Tensor) -> None:
    """As take_answers, in torch."""
    for slot, start, count, _ in segments.words.tolist():
        if slot < 0:
            said[start : start + count] = answers[start : start + count]


@jit
def ask_host_kernel(
    x: tl.tensor,  # [num_rows, WIDTH]
    segments: tl.tensor,  # [num_words]
    own_rows: tl.tensor,  # [pairs]
    rows: tl.tensor,  # as x
    words: tl.tensor,  # as segments
    pair_rows: tl.tensor,  # as own_rows
    num_rows: tl.tensor,
    num_words: tl.tensor,
    pairs: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A part of a row; behind the last row the first program has the lists."""
    row, part = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    if row < num_rows:
        at = row.to(tl.int64) * WIDTH + part * BLOCK + column
        inside = part * BLOCK + column < WIDTH
        tl.store(rows + at, tl.load(x + at, mask=inside, other=0.0), mask=inside)
    elif part == 0:
        for begin in range(0, num_words, BLOCK):
            at = begin + column
            tl.store(words + at, tl.load(segments + at, mask=at < num_words), mask=at < num_words)
        for begin in range(0, pairs, BLOCK):
            at = begin + column
            tl.store(pair_rows + at, tl.load(own_rows + at, mask=at < pairs), mask=at < pairs)


@jit
def take_answers_kernel(
    answers: tl.tensor,  # [pairs, WIDTH], the host's memory
    segments: tl.tensor,  # [most segments, WORDS]
    said: tl.tensor,  # [pairs, WIDTH]
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    segment = segments + tl.program_id(0) * WORDS
    if tl.load(segment) < 0:
        start, column = tl.load(segment + 1), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        for pair in range(start, start + tl.load(segment + 2)):
            at = tl.zeros((BLOCK,), tl.int64) + pair
            at = at * WIDTH + column
            told = tl.load(answers + at, mask=column < WIDTH, other=0.0)
            tl.store(said + at, told, mask=column < WIDTH)


def builds() -> list[KernelBuild]:
    sizes = {"WIDTH": 4096, "BLOCK": COLUMNS}
    lists = ("segments", "own_rows", "words", "pair_rows")
    asking = {"x": "*fp32", "rows": "*fp32"} | dict.fromkeys(lists, "*i32")
    asking |= dict.fromkeys(("num_rows", "num_words", "pairs"), "i32")
    taking = {"answers": "*fp32", "segments": "*i32", "said": "*fp32"}
    return [
        KernelBuild("v4 ask host", ask_host_kernel, asking, sizes, fuses=False),
        KernelBuild("v4 take answers", take_answers_kernel, taking, sizes, fuses=False),
    ]
