"""What newly committed tokens add to a drafter's context: the bits of its operations one by one."""

import torch

from dspark_kernels.cpu.context_pass import Context, ContextLayer, ContextPass, context_reference
from dspark_kernels.cpu.decoder_pass import Projection
from dspark_kernels.cpu.quantize import quantize_q8_0
from dspark_kernels.cpu.rope_write import Heads
from tests.kernels.cpu.pages import new_pages
from tests.kernels.cpu.test_decoder_pass import place_of, rotary

HIDDEN, TAPS, KV_HEADS, HEAD_DIM, LAYERS, SLOTS = 96, 192, 2, 64, 2, 3


def new_context(generator: torch.Generator) -> Context:
    def weight(*shape):
        return torch.randn(*shape, generator=generator)

    heads = Heads(0, KV_HEADS, HEAD_DIM, 1.0, (weight(HEAD_DIM), weight(HEAD_DIM), 1e-6))
    both = [quantize_q8_0(weight(2 * KV_HEADS * HEAD_DIM, HIDDEN)) for _ in range(LAYERS)]
    layers = [ContextLayer(Projection((each,)), heads) for each in both]
    return Context(quantize_q8_0(weight(HIDDEN, TAPS)), weight(HIDDEN), 1e-6, layers)


def test_a_pass_is_its_operations(runtimes):
    generator = torch.Generator().manual_seed(2)
    context = new_context(generator)
    blocks = [((0, 0, 9),), ((2, 0, 3), (0, 9, 1)), ((1, 4, 17),)]
    taps = [torch.randn(sum(n for _, _, n in each), TAPS, generator=generator) for each in blocks]
    expected = new_pages(LAYERS, SLOTS, KV_HEADS, HEAD_DIM)
    for each, rows in zip(blocks, taps, strict=True):
        context_reference(context, rows, expected, place_of(*each), rotary())
    written = expected.cached.isfinite().sum()
    assert written == LAYERS * 2 * sum(map(len, taps)) * KV_HEADS * HEAD_DIM
    for runtime in runtimes:
        run, cache = ContextPass(runtime, context), new_pages(LAYERS, SLOTS, KV_HEADS, HEAD_DIM)
        for each, rows in zip(blocks, taps, strict=True):
            run(rows, cache, place_of(*each), rotary())
        same = torch.equal(cache.cached.nan_to_num(3.0), expected.cached.nan_to_num(3.0))
        assert same, runtime.variant.name


def test_int8_copies_are_within_half_a_step():
    weight = torch.randn(33, 96, generator=torch.Generator().manual_seed(1))
    weight[3] = 0.0
    groups = weight.unflatten(1, (-1, 32))
    steps = groups.abs().amax(-1, keepdim=True) / 127
    error = (quantize_q8_0(weight).dequantized().unflatten(1, (-1, 32)) - groups).abs()
    half_precision = 2.0**-11  # of a step, for each of up to 127
    assert (error <= steps * (0.5 + 127 * half_precision)).all()
    assert torch.equal(quantize_q8_0(weight).dequantized()[3], torch.zeros(96))


def test_what_q8_0_holds_already_stays_as_it_is():
    codes = torch.randint(-127, 128, (16, 64), generator=torch.Generator().manual_seed(1))
    codes[:, ::32] = 127
    weight = codes * 0.25
    assert torch.equal(quantize_q8_0(weight).dequantized(), weight)
