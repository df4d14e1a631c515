"""Splits of the attention over pages: which positions each has, and the sum of their results.

The first positions are cut finely, so that a short context fills a card; beyond them a split is a
page, so that the results of splits stay small beside the keys.
"""

import math

from dspark_kernels.backend import jit, tl
from dspark_kernels.rounding import round_to

LOG2_E = tl.constexpr(math.log2(math.e))
SHORT_SPLIT = tl.constexpr(64)  # positions, of which a page has a whole number
SHORT_SPLITS = tl.constexpr(16)  # how many there are


@jit
def split_of(position: tl.tensor, PAGE: tl.constexpr) -> tl.tensor:
    """The split of a position."""
    short = position // SHORT_SPLIT
    long = SHORT_SPLITS + (position - SHORT_SPLITS * SHORT_SPLIT) // PAGE
    return tl.where(short < SHORT_SPLITS, short, long)


@jit
def split_at(split: tl.tensor, PAGE: tl.constexpr) -> tl.tensor:
    """The first position of a split, and how many it has."""
    short = split * SHORT_SPLIT
    long = SHORT_SPLITS * SHORT_SPLIT + (split - SHORT_SPLITS) * PAGE
    is_short = split < SHORT_SPLITS
    return tl.where(is_short, short, long), tl.where(is_short, SHORT_SPLIT, PAGE)


@jit
def combined_splits(
    partial: tl.tensor,  # [N, heads, splits, HEAD_DIM]
    maxima: tl.tensor,
    sums: tl.tensor,
    sinks: tl.tensor,
    out: tl.tensor,  # [N, heads, HEAD_DIM]
    first_pair: tl.tensor,
    num_pairs: tl.tensor,
    num_splits: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    stride: tl.tensor,
    first_place: tl.tensor,
    is_whole: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SUMS: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_SINKS: tl.constexpr,
) -> None:
    """Adds results `first` to `last` of each pair, CHUNK at a time in order. Result i is in the
    place i * stride, or first_place if that is later. The sum is written out if it is whole, and
    else takes the first place."""
    column = tl.arange(0, BLOCK_DIM)
    inside = column < HEAD_DIM
    for begin in range(0, num_pairs, BLOCK_SUMS):
        pair = begin + tl.arange(0, BLOCK_SUMS)
        is_live = pair < num_pairs
        pair_index = first_pair + pair // GROUP * (NUM_KV_HEADS * GROUP) + pair % GROUP
        total = tl.zeros((BLOCK_SUMS, BLOCK_DIM), tl.float32)
        weight_sum = tl.zeros((BLOCK_SUMS,), tl.float32)
        maximum = tl.full((BLOCK_SUMS,), float("-inf"), tl.float32)
        for chunk in range(first // CHUNK * CHUNK, last + 1, CHUNK):
            index = chunk + tl.arange(0, CHUNK)
            present = is_live[:, None] & ((index >= first) & (index <= last))[None, :]
            place = tl.maximum(index * stride, first_place)
            at = pair_index[:, None] * num_splits + place[None, :]
            peaks = tl.load(maxima + at, mask=present, other=float("-inf"), cache_modifier=".cg")
            raised = tl.maximum(maximum, tl.max(peaks, axis=1))
            finite = tl.where(raised == float("-inf"), 0.0, raised)
            shrink = tl.exp2(maximum - finite)
            weights = tl.exp2(peaks - finite[:, None])
            values = tl.load(
                partial + at[:, :, None] * HEAD_DIM + column[None, None, :],
                mask=present[:, :, None] & inside[None, None, :],
                other=0.0,
                cache_modifier=".cg",
            )
            total = total * shrink[:, None] + tl.sum(values * weights[:, :, None], axis=1)
            each_sum = tl.load(sums + at, mask=present, other=0.0, cache_modifier=".cg")
            weight_sum = weight_sum * shrink + tl.sum(each_sum * weights, axis=1)
            maximum = raised
        both = is_live[:, None] & inside[None, :]
        if is_whole:
            if HAS_SINKS:
                head = first_pair % (NUM_KV_HEADS * GROUP) + pair % GROUP
                sink = tl.load(sinks + head, mask=is_live, other=0.0).to(tl.float32) * LOG2_E
                raised = tl.maximum(maximum, sink)
                shrink = tl.exp2(maximum - raised)
                total = total * shrink[:, None]
                weight_sum = weight_sum * shrink + tl.exp2(sink - raised)
            result = round_to(total / weight_sum[:, None], out.dtype.element_ty)
            tl.store(out + pair_index[:, None] * HEAD_DIM + column[None, :], result, mask=both)
        else:
            tl.debug_barrier()  # all threads have read what is written over
            at_first = pair_index * num_splits + first_place
            tl.store(maxima + at_first, maximum, mask=is_live)
            tl.store(sums + at_first, weight_sum, mask=is_live)
            tl.store(partial + at_first[:, None] * HEAD_DIM + column[None, :], total, mask=both)
