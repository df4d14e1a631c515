"""Noise as a function of seed, place and token alone: Philox (Salmon et al. 2011), in NumPy and
Triton.

The generators have no state, so a token's noise is the same in a draft and in the target's own
draw, whatever else is in the batch and whatever was drafted and rolled back before. Gumbel noise is
computed in float64 and rounded, since there a logarithm has the same bits in every library.
"""

import numpy as np
import torch

from dspark_kernels.backend import jit, tl
from dspark_kernels.cpu.race import noise_words

SEEDS = 1 << 64  # there are so many
GROUP = tl.constexpr(8)  # numbers of 32 bits in one block of Philox
STEP = 2.0**-32
GUMBEL_STREAM = tl.constexpr(0)
UNIFORM_STREAM = tl.constexpr(1)
# how far the quick logarithms of a card may take `gumbel` from `exact_gumbel`, with room to spare
MARGIN = tl.constexpr(2.0**-8)


def gumbel_row(seed: int, place: int, num_tokens: int) -> torch.Tensor:
    """Of one place: [num_tokens] float32 on the CPU. Any 64 bits are a seed, signed or not."""
    return gumbel_of(token_words(seed, place, num_tokens))


def gumbel_of(words: np.ndarray) -> torch.Tensor:
    """Noise float32 [...] of the words of tokens."""
    uniform = torch.from_numpy(words).double()
    uniform.add_(0.5).mul_(STEP)  # never 0 nor 1
    return uniform.log_().neg_().log_().neg_().float()


def token_words(seed: int, place: int, num_tokens: int) -> np.ndarray:
    """The words of one place's tokens, [num_tokens], by our kernel if the kernels run here."""
    words = noise_words(seed, place, num_tokens)
    return _words(seed, place, num_tokens, stream=0) if words is None else words


def gumbel_reference(seeds: torch.Tensor, places: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """seeds, places [R] int64 -> [R, num_tokens] float32."""
    pairs = zip(seeds.tolist(), places.tolist(), strict=True)
    rows = [gumbel_row(seed, place, num_tokens) for seed, place in pairs]
    return torch.stack(rows).to(seeds.device)


def uniform_reference(seeds: torch.Tensor, places: torch.Tensor, count: int) -> torch.Tensor:
    """seeds, places [R] int64 -> [R, count] float32 in [0, 1); independent of tokens' noise."""
    pairs = zip(seeds.tolist(), places.tolist(), strict=True)
    rows = np.stack([_words(seed, place, count, stream=1) >> 8 for seed, place in pairs])
    return (torch.from_numpy(rows).float() * 2.0**-24).to(seeds.device)


def _words(seed: int, place: int, count: int, *, stream: int) -> np.ndarray:
    """[count] numbers of 32 bits, the lower half of each 64 first. NumPy counts from 1."""
    counter, key = np.array([[0, place, stream, 0], [seed % SEEDS, 0, 0, 0]], dtype=np.uint64)
    philox = np.random.Philox(counter=counter, key=key[:2])
    raw = philox.random_raw(-(-count // 2)).astype("<u8", copy=False)
    return raw.view("<u4")[:count]


@jit
def words(
    seed: tl.tensor,
    place: tl.tensor,
    first: tl.tensor,
    STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """[BLOCK] numbers of 32 bits from `first` on, a multiple of GROUP, as BLOCK is."""
    group = (tl.arange(0, BLOCK // GROUP) + first // GROUP + 1).to(tl.int64)
    zeros = group * 0
    a, b, c, d = tl.philox(seed, group, zeros + place, zeros + STREAM, zeros)
    even = tl.interleave(tl.interleave(_low(a), _low(c)), tl.interleave(_low(b), _low(d)))
    odd = tl.interleave(tl.interleave(_high(a), _high(c)), tl.interleave(_high(b), _high(d)))
    return tl.interleave(even, odd)


@jit
def uniform(seed: tl.tensor, place: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """[BLOCK] float32, bit-identical to uniform_reference."""
    bits = words(seed, place, place.to(tl.int32) * 0, UNIFORM_STREAM, BLOCK)
    return (bits >> 8).to(tl.float32) * 5.960464477539063e-08


@jit
def _low(x: tl.tensor) -> tl.tensor:
    return (x & 0xFFFFFFFF).to(tl.uint32)


@jit
def _high(x: tl.tensor) -> tl.tensor:
    return (x >> 32).to(tl.uint32)


@jit
def gumbel(seed: tl.tensor, place: tl.tensor, first: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Noise of the tokens first .. first + BLOCK, within MARGIN of the exact value."""
    return _gumbel_of(words(seed, place, first, GUMBEL_STREAM, BLOCK))


@jit
def gumbel_at(seed: tl.tensor, place: tl.tensor, tokens: tl.tensor) -> tl.tensor:
    """As gumbel, of tokens [N] anywhere in the vocabulary."""
    group = (tokens // GROUP + 1).to(tl.int64)
    within = (tokens % GROUP).to(tl.int32)
    zeros = group * 0
    a, b, c, d = tl.philox(seed, group, zeros + place, zeros + GUMBEL_STREAM, zeros)
    pair = within // 2
    pairs = tl.where(pair == 0, a, tl.where(pair == 1, b, tl.where(pair == 2, c, d)))
    return _gumbel_of(tl.where(within % 2 == 0, _low(pairs), _high(pairs)))


@jit
def _gumbel_of(bits: tl.tensor) -> tl.tensor:
    below = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    above = ((bits ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    # -log(1 - above), exact if that is small, as it is for winners
    waiting = tl.where(above < 1e-3, above + 0.5 * above * above, -tl.log(below))
    return -tl.log(waiting)


@jit
def exact_gumbel(
    seed: tl.tensor, place: tl.tensor, first: tl.tensor, BLOCK: tl.constexpr
) -> tl.tensor:
    """As gumbel, bit-identical to gumbel_row."""
    bits = words(seed, place, first, GUMBEL_STREAM, BLOCK)
    uniform = (bits.to(tl.float64) + 0.5) * 2.3283064365386963e-10
    return (-tl.log(-tl.log(uniform))).to(tl.float32)
