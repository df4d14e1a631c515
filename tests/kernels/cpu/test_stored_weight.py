"""Weights keep what their file says, and what is no weight is refused."""

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from dspark_kernels.cpu.formats import FORMATS
from dspark_kernels.cpu.gguf_blocks import take_apart
from dspark_kernels.cpu.stored_weight import concatenated, stored_weight
from tests.kernels.cpu.random_weights import random_blocks


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("num_outputs", [1, 16, 37])
def test_a_weight_means_what_gguf_says(kind, num_outputs, generator):
    blocks = random_blocks(kind, num_outputs, 512, generator)
    weight = stored_weight(kind, blocks)
    expected = torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType[kind.upper()]))
    assert weight.shape == (num_outputs, 512)
    assert torch.equal(weight.dequantized(), expected)
    some = torch.randint(num_outputs, (5,))
    assert torch.equal(weight.rows(some), expected[some])
    for kept, stored in zip(
        weight.parts(torch.arange(num_outputs)), take_apart(kind, blocks), strict=True
    ):
        assert (kept is None and stored is None) or torch.equal(kept, stored)


@pytest.mark.parametrize("kind", FORMATS)
def test_it_takes_no_more_than_the_file(kind, generator):
    blocks = random_blocks(kind, 32, 512, generator)
    assert stored_weight(kind, blocks).data.numel() <= blocks.numel() * 1.03


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_a_quantised_matrix_is_near_what_it_was(kind):
    matrix = torch.randn(48, 96)
    blocks = torch.from_numpy(quantize(matrix.numpy(), GGMLQuantizationType[kind.upper()]))
    near = (stored_weight(kind, blocks).dequantized() - matrix).norm() / matrix.norm()
    assert near < {"4": 0.12, "5": 0.06, "8": 0.006}[kind[1]]


def test_weights_of_one_format_are_put_together(generator):
    blocks = [random_blocks("q4_k", n, 256, generator) for n in (32, 16, 5)]
    parts = [stored_weight("q4_k", each) for each in blocks]
    whole = concatenated(parts)
    assert whole is not None
    assert torch.equal(whole.data, stored_weight("q4_k", torch.cat(blocks)).data)
    assert concatenated([parts[2], parts[0]]) is None  # a block would hold outputs of both
    assert (
        concatenated([parts[0], stored_weight("q8_0", random_blocks("q8_0", 4, 256, generator))])
        is None
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_no_weight_is_refused(kind, generator):
    blocks = random_blocks(kind, 2, 256, generator)
    for wrong in (blocks[:, :-1], blocks[0], blocks.float()):
        with pytest.raises(ValueError, match="whole blocks"):
            stored_weight(kind, wrong)
    with pytest.raises(ValueError, match="groups of"):
        stored_weight(kind, blocks[:, :0])
    at = 208 if kind == "q6_k" else 0
    for bits in (0x7C00, 0xFC00, 0x7E00):
        bad = blocks.clone()
        bad[1, at], bad[1, at + 1] = bits & 255, bits >> 8
        with pytest.raises(ValueError, match="not finite"):
            stored_weight(kind, bad)


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="iq2_xs"):
        stored_weight("iq2_xs", torch.zeros(1, 74, dtype=torch.uint8))
