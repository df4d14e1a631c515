"""Gumbel noise that is a function of seed, position and token alone: Philox, in torch and Triton.

No generator has a state to keep, so a request draws the same whatever its company and whatever was
drafted and taken back before.
"""

import torch

from dspark_kernels.backend import jit, tl

MASK = 0xFFFFFFFF
ROUND_KEYS = (0x9E3779B9, 0xBB67AE85)
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
NUM_ROUNDS = 10
STEP = 4.6566127342e-10  # what tl.uint_to_uniform_float multiplies 31 bits with
HALF_STEP = 2.3283063671e-10
SMALLEST_UNIFORM = tl.constexpr(HALF_STEP)  # no number is 0


def gumbel_reference(seeds: torch.Tensor, positions: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """seeds, positions [R] -> [R, num_tokens] float32."""
    uniform = uniform_reference(seeds, positions, num_tokens, stream=0).clamp_(min=HALF_STEP)
    # -log(1 - u), exact where u is small: there the winners are
    waiting = torch.where(uniform < 1e-3, uniform + 0.5 * uniform**2, -torch.log(1.0 - uniform))
    return -torch.log(waiting)


def uniform_reference(
    seeds: torch.Tensor, positions: torch.Tensor, count: int, *, stream: int
) -> torch.Tensor:
    """seeds, positions [R] -> [R, count] float32 from 0 up to 1; streams share no number."""
    tokens = torch.arange(count, device=seeds.device)
    c0, c1 = tokens.expand(len(seeds), -1), positions[:, None]
    c2, c3 = 0 * c1 + stream, 0 * c1
    k0, k1 = seeds[:, None] & MASK, seeds[:, None] >> 32 & MASK
    for _ in range(NUM_ROUNDS):
        high, low = c2 * MULTIPLIERS[1], c0 * MULTIPLIERS[0]
        c0, c2 = (high >> 32 & MASK) ^ c1 ^ k0, (low >> 32 & MASK) ^ c3 ^ k1
        c1, c3 = high & MASK, low & MASK
        k0, k1 = k0 + ROUND_KEYS[0] & MASK, k1 + ROUND_KEYS[1] & MASK
    signed = torch.where(c0 >= 1 << 31, (1 << 32) - 1 - c0, c0)
    return signed.float() * STEP


@jit
def gumbel(seed: tl.tensor, position: tl.tensor, tokens: tl.tensor) -> tl.tensor:
    """As gumbel_reference, for one request and a block of tokens."""
    zeros = tokens * 0
    bits, _, _, _ = tl.philox(seed, tokens, zeros + position.to(tl.int32), zeros, zeros)
    uniform = tl.maximum(tl.uint_to_uniform_float(bits), SMALLEST_UNIFORM)
    # log(0) is not asked for: uniform stays below 1
    waiting = tl.where(uniform < 1e-3, uniform + 0.5 * uniform * uniform, -tl.log(1.0 - uniform))
    return -tl.log(waiting)
