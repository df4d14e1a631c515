"""The noise of the kernels is NumPy's, number by number."""

import torch

from dspark_kernels.backend import jit, tl
from dspark_kernels.noise import (
    GUMBEL_STREAM,
    MARGIN,
    _words,
    exact_gumbel,
    gumbel,
    gumbel_at,
    gumbel_row,
    words,
)

BLOCK = 64
CASES = [(0, 0), (5, 17), (2**63 + 9, 3), (2**64 - 1, 2**31 + 5), (-7, 4097)]


@jit
def noise_kernel(seeds, places, bits, quick, exact, num_blocks, BLOCK: tl.constexpr):
    request = tl.program_id(0)
    seed, place = tl.load(seeds + request), tl.load(places + request)
    for index in range(0, num_blocks):
        first = index * BLOCK
        at = request * num_blocks * BLOCK + first + tl.arange(0, BLOCK)
        tl.store(bits + at, words(seed, place, first, GUMBEL_STREAM, BLOCK).to(tl.int64))
        tl.store(quick + at, gumbel(seed, place, first, BLOCK))
        tl.store(exact + at, exact_gumbel(seed, place, first, BLOCK))


@jit
def scattered_kernel(tokens, out, seed, place, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(out + at, gumbel_at(seed, place, tl.load(tokens + at)))


def test_noise_of_a_token_is_the_same_alone(device):
    tokens = torch.randperm(1000, device=device)[:16]
    out = torch.empty(16, device=device)
    scattered_kernel[(1,)](tokens, out, -7, 4097, COUNT=16)
    wanted = gumbel_row(-7, 4097, 1000)[tokens.cpu()]
    assert (out.cpu() - wanted).abs().max() < MARGIN.value / 8


def test_bits_and_noise_are_those_of_the_host(device):
    num_blocks = 3
    signed = [(seed + 2**63) % 2**64 - 2**63 for seed, _ in CASES]
    seeds = torch.tensor(signed, device=device)
    places = torch.tensor([place for _, place in CASES], device=device)
    new = seeds.new_empty
    shape = (len(CASES), num_blocks * BLOCK)
    bits, quick, exact = (
        new(shape),
        new(shape, dtype=torch.float32),
        new(shape, dtype=torch.float32),
    )
    noise_kernel[(len(CASES),)](seeds, places, bits, quick, exact, num_blocks, BLOCK=BLOCK)
    for row, (seed, place) in enumerate(CASES):
        assert bits[row].tolist() == _words(seed, place, shape[1], stream=0).tolist()
        wanted = gumbel_row(seed, place, shape[1])
        assert torch.equal(exact[row].cpu(), wanted)
        assert (quick[row].cpu() - wanted).abs().max() < MARGIN.value / 8
