"""A whole pass: the same bits as its operations one by one, in any company, cut anyhow."""

import random

import pytest
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from dspark_kernels import RotaryTable, apply_rope, swiglu
from dspark_kernels.cpu.decoder_pass import (
    Decoder,
    DecoderLayer,
    DecoderPass,
    Projection,
    decoder_reference,
)
from dspark_kernels.cpu.rope_write import Heads
from dspark_kernels.cpu.step_words import Pages, Place
from dspark_kernels.cpu.stored_weight import stored_weight
from dspark_kernels.paged_cache import PAGE
from tests.kernels.cpu.pages import COLUMNS, new_pages
from tests.kernels.cpu.random_weights import random_weight

HIDDEN, INNER, LAYERS, SLOTS = 256, 512, 3, 4
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 4, 2, 64
VOCABULARY = 100
ROUNDING = 2e-4  # of 8 bits it would be 2e-2


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(23)


def projection(kinds, outputs, width, generator, has_bias=False) -> Projection:
    weights = tuple(
        random_weight(kind, n, width, generator) for kind, n in zip(kinds, outputs, strict=True)
    )
    bias = torch.randn(sum(outputs), generator=generator) * 0.1 if has_bias else None
    return Projection(weights, bias)


def new_decoder(generator, *, has_norms: bool, has_bias: bool, taps=(-1, 1)) -> Decoder:
    """Layers of several formats; queries, keys and values of the last of two."""

    def norm(size):
        return torch.rand(size, generator=generator) + 0.5

    norms = (norm(HEAD_DIM), norm(HEAD_DIM), 1e-6) if has_norms else None
    heads = Heads(NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5, norms)
    width, kv = NUM_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM
    layers = []
    for kind, qkv_kinds in (
        ("q4_0", ["q4_0"]),
        ("q4_0", ["q4_k"]),
        ("q8_0", ["q4_k", "q6_k"]),
    ):
        outputs = [width + 2 * kv] if len(qkv_kinds) == 1 else [width + kv, kv]
        layers.append(
            DecoderLayer(
                norm(HIDDEN),
                projection(qkv_kinds, outputs, HIDDEN, generator, has_bias),
                heads,
                projection([kind], [HIDDEN], width, generator),
                norm(HIDDEN),
                projection([kind], [2 * INNER], HIDDEN, generator),
                projection(["q8_0"], [HIDDEN], INNER, generator),
            )
        )
    embedding = random_weight("q5_0", VOCABULARY, HIDDEN, generator)
    return Decoder(embedding, layers, norm(HIDDEN), 1e-5, taps)


def rotary() -> tuple[torch.Tensor, torch.Tensor]:
    inverse = 1e4 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    cos, sin = RotaryTable(inverse, 1.0, torch.float32).upto(COLUMNS * PAGE - 1)
    return cos.contiguous(), sin.contiguous()


def new_cache() -> Pages:
    return new_pages(LAYERS, SLOTS, NUM_KV_HEADS, HEAD_DIM)


def place_of(*blocks: tuple[int, int, int]) -> Place:
    """(slot, start, rows) of each request, causal."""
    slots = torch.tensor([slot for slot, _, n in blocks for _ in range(n)])
    positions = torch.tensor([start + i for _, start, n in blocks for i in range(n)])
    return Place(positions, slots, positions + 1)


@pytest.mark.parametrize(("has_norms", "has_bias"), [(False, False), (True, True)])
def test_a_pass_is_its_operations(has_norms, has_bias, runtimes, generator):
    decoder = new_decoder(generator, has_norms=has_norms, has_bias=has_bias)
    blocks = [((0, 0, 5),), ((2, 0, 9), (0, 5, 3)), ((0, 8, 1), (1, 0, 2), (2, 9, 1))]
    inputs = [torch.randint(VOCABULARY, (sum(n for _, _, n in each),)) for each in blocks]
    cache, expected = new_cache(), []
    for each, tokens in zip(blocks, inputs, strict=True):
        expected.append(decoder_reference(decoder, tokens, cache, place_of(*each), rotary()))
    for runtime in runtimes:
        run, own = DecoderPass(runtime, decoder), new_cache()
        for each, tokens, (hidden, taps) in zip(blocks, inputs, expected, strict=True):
            result = run(tokens, own, place_of(*each), rotary())
            assert torch.equal(result[0], hidden), runtime.variant.name
            assert torch.equal(result[1], taps)
        assert torch.equal(own.cached.nan_to_num(3.0), cache.cached.nan_to_num(3.0))


def dense(projection: Projection) -> torch.Tensor:
    return torch.cat([w.dequantized() for w in projection.weights]).double()


def plainly(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """One request from its start in float64."""
    x = decoder.embedding.dequantized().double()[tokens]
    cos, sin = (t[: len(x)].double().unsqueeze(1) for t in rotary())
    for layer in decoder.layers:
        normed = F.rms_norm(x, (HIDDEN,), layer.input_norm.double(), decoder.eps)
        qkv = (normed @ dense(layer.qkv).t()).unflatten(1, (-1, HEAD_DIM))
        q, k, v = qkv.split([NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], dim=1)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        out = F.scaled_dot_product_attention(
            *(t.transpose(0, 1) for t in (q, k, v)), is_causal=True, enable_gqa=True
        )
        x = x + out.transpose(0, 1).flatten(1) @ dense(layer.output).t()
        normed = F.rms_norm(x, (HIDDEN,), layer.mlp_norm.double(), decoder.eps)
        gated = swiglu(normed @ dense(layer.gate_up).t())
        x = x + gated @ dense(layer.down).t()
    return F.rms_norm(x, (HIDDEN,), decoder.final_norm.double(), decoder.eps)


def tame(shape: tuple[int, int], generator: torch.Generator) -> Projection:
    """Such weights as models have."""
    weight = torch.randn(shape, generator=generator) * shape[1] ** -0.5
    blocks = quantize(weight.numpy(), GGMLQuantizationType.Q8_0)
    return Projection((stored_weight("q8_0", torch.from_numpy(blocks)),))


def test_it_is_the_model_but_for_rounded_rows(generator):
    decoder = new_decoder(generator, has_norms=False, has_bias=False, taps=())
    layers = [
        layer._replace(
            qkv=tame((layer.qkv.num_outputs, HIDDEN), generator),
            output=tame((HIDDEN, HIDDEN), generator),
            gate_up=tame((2 * INNER, HIDDEN), generator),
            down=tame((HIDDEN, INNER), generator),
        )
        for layer in decoder.layers
    ]
    (embedding,) = tame((VOCABULARY, HIDDEN), generator).weights
    decoder = decoder._replace(layers=layers, embedding=embedding)
    tokens = torch.randint(VOCABULARY, (20,), generator=generator)
    result, _ = decoder_reference(decoder, tokens, new_cache(), place_of((1, 0, 20)), rotary())
    exact = plainly(decoder, tokens)
    assert (exact - result.double()).norm() < ROUNDING * exact.norm()


def test_the_cut_and_the_company_change_nothing(runtimes, generator):
    decoder = new_decoder(generator, has_norms=True, has_bias=True)
    inputs = [torch.randint(VOCABULARY, (30,), generator=generator) for _ in range(3)]
    draw, table = random.Random(9), rotary()
    for runtime in runtimes[::2]:
        run = DecoderPass(runtime, decoder)
        cache = new_cache()
        whole = [run(x, cache, place_of((slot, 0, 30)), table) for slot, x in enumerate(inputs)]
        cache, done = new_cache(), [0, 0, 0]
        while min(done) < 30:
            blocks = []
            for slot in draw.sample(range(3), draw.randint(1, 3)):
                size = min(draw.randint(1, 9), 30 - done[slot])
                if size:
                    blocks.append((slot, done[slot], size))
            if not blocks:
                continue
            tokens = torch.cat([inputs[slot][start : start + n] for slot, start, n in blocks])
            hidden, taps = run(tokens, cache, place_of(*blocks), table)
            for slot, start, n in blocks:
                assert torch.equal(hidden[:n], whole[slot][0][start : start + n])
                assert torch.equal(taps[:n], whole[slot][1][start : start + n])
                hidden, taps = hidden[n:], taps[n:]
                done[slot] += draw.randint(0, n)  # rows not kept are written over


def test_too_many_rows_are_refused(runtimes, generator):
    decoder = new_decoder(generator, has_norms=False, has_bias=False)
    with pytest.raises(ValueError, match="65 rows"):
        DecoderPass(runtimes[0], decoder)(
            torch.zeros(65, dtype=torch.int64), new_cache(), place_of((0, 0, 65)), rotary()
        )


@pytest.mark.parametrize("wrong", [VOCABULARY, -1])
def test_a_token_that_is_none_is_refused(wrong, runtimes, generator):
    decoder = new_decoder(generator, has_norms=False, has_bias=False)
    with pytest.raises(ValueError, match="tokens"):
        DecoderPass(runtimes[0], decoder)(
            torch.tensor([0, wrong]), new_cache(), place_of((0, 0, 2)), rotary()
        )
