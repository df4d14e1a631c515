"""Quantised weights: repacked checkpoints mean what their own packing says, own ones are near."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

from dspark.checkpoints.gguf_codes import GPU_CODE_BYTES
from dspark_kernels.cpu.formats import FORMATS
from dspark_kernels.cpu.stored_weight import stored_weight
from dspark_kernels.quantized_weight import concatenated, quantize_fp8, quantize_int4, quantize_int8
from dspark_kernels.repacked_weight import (
    e8m0,
    from_awq,
    from_fp4,
    from_fp8,
    from_gguf,
    from_gptq,
)

ROWS, COLUMNS, GROUP = 24, 256, 64
AWQ_ELEMENTS = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight neighbours each nibble of a word holds


def packed(codes: torch.Tensor, elements: tuple[int, ...]) -> torch.Tensor:
    """[A, 8 B] of 0..15 -> int32 [A, B]."""
    words = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int64)
    for place, element in enumerate(elements):
        words |= codes[:, element::8].long() << 4 * place
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


@pytest.fixture
def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """codes [K, N], zeros [K / group, N], scales [K / group, N], and the weight [N, K]."""
    codes = torch.randint(16, (COLUMNS, ROWS))
    zeros = torch.randint(1, 16, (COLUMNS // GROUP, ROWS))
    scales = torch.rand(COLUMNS // GROUP, ROWS)
    wide = [t.repeat_interleave(GROUP, dim=0) for t in (zeros, scales)]
    return codes, zeros, scales, ((codes - wide[0]) * wide[1]).t()


def test_awq(parts):
    codes, zeros, scales, expected = parts
    weight = from_awq(packed(codes, AWQ_ELEMENTS), packed(zeros, AWQ_ELEMENTS), scales)
    assert weight.shape == (ROWS, COLUMNS)
    assert torch.equal(weight.dequantized(torch.float32), expected)


@pytest.mark.parametrize("zero_offset", [0, 1])
def test_gptq(parts, zero_offset):
    codes, zeros, scales, expected = parts
    in_order = tuple(range(8))
    qweight = packed(codes.t(), in_order).t()
    qzeros = packed(zeros - zero_offset, in_order)
    weight = from_gptq(qweight, qzeros, scales, zero_offset=zero_offset)
    assert torch.equal(weight.dequantized(torch.float32), expected)


def test_gptq_with_columns_in_the_order_of_their_activations(parts):
    codes, zeros, scales, expected = parts
    shuffled = torch.randperm(COLUMNS)
    in_order = tuple(range(8))
    weight = from_gptq(
        packed(codes[shuffled].t(), in_order).t(),
        packed(zeros - 1, in_order),
        scales,
        (torch.arange(COLUMNS) // GROUP)[shuffled],
    )
    assert weight.order is not None
    assert torch.equal(weight.dequantized(torch.float32), expected[:, shuffled])


def test_one_group_a_row_is_stored_as_several(parts):
    codes, zeros, scales, _ = parts
    qweight = packed(codes, AWQ_ELEMENTS)
    weight = from_awq(qweight, packed(zeros[:1], AWQ_ELEMENTS), scales[:1])
    assert weight.group == 128
    assert torch.equal(weight.dequantized(torch.float32), ((codes - zeros[:1]) * scales[:1]).t())


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="groups of 16"):
        from_awq(torch.zeros(32, 1).int(), torch.zeros(2, 1).int(), torch.ones(2, 8))
    with pytest.raises(ValueError, match="scales are"):
        from_fp8(torch.zeros(130, 128).to(torch.float8_e4m3fn), torch.ones(1, 1))
    for shape in ((2, 1), (3, 2)):
        with pytest.raises(ValueError, match="scales are"):
            from_fp4(torch.zeros(3, 16).byte(), torch.zeros(shape).byte())


def test_fp8_blocks_at_the_edge_of_a_matrix():
    """160 rows and 96 columns in blocks of 128: two scales by one."""
    weight = torch.ones(160, 96).to(torch.float8_e4m3fn)
    scale = e8m0(torch.tensor([[127], [130]], dtype=torch.uint8))
    full = from_fp8(weight, scale).dequantized(torch.float32)
    assert full.shape == (160, 96)
    assert bool((full[:128] == 1.0).all()) and bool((full[128:] == 8.0).all())


def test_a_block_larger_than_the_matrix_costs_no_memory():
    weight = torch.ones(4, 6).to(torch.float8_e4m3fn)
    scale = e8m0(torch.tensor([[128]], dtype=torch.uint8))
    full = from_fp8(weight, scale, (2**31, 2**31)).dequantized(torch.float32)
    assert torch.equal(full, torch.full((4, 6), 2.0))


def test_as_many_blocks_as_rows_are_blocks():
    """Two rows of 200 columns have two blocks, and not a scale each."""
    scales = torch.tensor([[2.0, 4.0]])
    full = from_fp8(torch.ones(2, 200).to(torch.float8_e4m3fn), scales).dequantized(torch.float32)
    assert bool((full[:, :128] == 2.0).all()) and bool((full[:, 128:] == 4.0).all())


GRID = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of e2m1: the Open Compute Project's table


def test_all_sixteen_fp4_codes():
    codes = torch.arange(16, dtype=torch.uint8).repeat(2)
    packed = (codes[0::2] | codes[1::2] << 4).view(1, 16)
    weight = from_fp4(packed, torch.tensor([[128]], dtype=torch.uint8))
    expected = 2.0 * torch.tensor([*GRID, *(-value for value in GRID)]).repeat(2)
    assert weight.shape == (1, 32) and torch.equal(weight.dequantized(torch.float32)[0], expected)


def test_fp4_scales_are_those_of_32_columns():
    """The least and the largest power that a byte can say, and the one that is no number."""
    pairs = torch.full((1, 64), 0x22, dtype=torch.uint8)  # two ones to a byte
    full = from_fp4(pairs, torch.tensor([[0, 254, 255, 127]], dtype=torch.uint8))
    first, second, third, last = full.dequantized(torch.float32).view(4, 32)
    assert bool((first == 2.0**-127).all()) and bool((second == 2.0**127).all())
    assert bool(third.isnan().all()) and bool((last == 1.0).all())


def test_fp4_weights_one_above_the_other_and_rows_of_both():
    def weight():
        return from_fp4(*(torch.randint(100, 140, shape).byte() for shape in ((8, 32), (8, 2))))

    parts = [weight(), weight()]
    whole = concatenated(parts)
    full = torch.cat([part.dequantized(torch.float32) for part in parts])
    assert torch.equal(whole.dequantized(torch.float32), full)
    assert torch.equal(whole.rows(5).dequantized(torch.float32), full[5:])


def test_rows_begin_where_a_scale_begins():
    weight = quantize_fp8(torch.randn(300, 130))
    below = weight.rows(128).dequantized(torch.float32)
    assert torch.equal(below, weight.dequantized(torch.float32)[128:])
    between = weight.rows(128, 200).dequantized(torch.float32)
    assert torch.equal(between, weight.dequantized(torch.float32)[128:200])
    with pytest.raises(ValueError, match="inside a block of 128"):
        weight.rows(100)


@pytest.mark.parametrize(
    ("quantize", "step"),
    [
        # half a step between codes: of 255 or 16 over a group's range, of an e4m3 mantissa
        (quantize_int8, 0.5 / 127),
        (lambda w: quantize_int4(w, 32), 1.0 / 15),
        (quantize_fp8, 0.5 / 8),
    ],
)
def test_a_quantised_weight_is_near(quantize, step):
    weight = torch.randn(130, 192).clamp_(-3, 3)
    difference = (quantize(weight).dequantized(torch.float32) - weight).abs()
    assert difference.max() <= step * weight.abs().max() * 1.01
    assert difference.max() > 0


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q8_0"])
def test_codes_of_a_gguf_are_the_numbers_that_its_own_package_reads(kind):
    """To the bit, in any part of the rows, and joined with others."""
    if kind == "Q4_K":  # which that package only reads: any bits under scales of the right size
        blocks = np.random.default_rng(1).integers(0, 256, (ROWS, 144), dtype=np.uint8)
        blocks[:, :4] = np.array([1e-4, 7.5e-4], np.float16).view(np.uint8)
    else:
        blocks = quantize(torch.randn(ROWS, COLUMNS).numpy(), Kind[kind])
    expected = torch.from_numpy(dequantize(blocks, Kind[kind]))
    weight = from_gguf(stored_weight(kind.lower(), torch.from_numpy(blocks)))
    assert weight is not None and weight.kind == ("int4" if kind[1] == "4" else "int8")
    assert torch.equal(weight.dequantized(torch.float32), expected)
    assert torch.equal(weight.rows(5, 9).dequantized(torch.float32), expected[5:9])
    twice = concatenated([weight, weight.rows(3)])
    assert twice is not None
    assert torch.equal(twice.dequantized(torch.float32), torch.cat([expected, expected[3:]]))


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_on_a_gpu_are_those_that_memory_is_counted_with(kind):
    size, num_bytes = GGML_QUANT_SIZES[Kind[kind.upper()]]
    blocks = torch.zeros(ROWS, COLUMNS // size * num_bytes, dtype=torch.uint8)
    weight = from_gguf(stored_weight(kind, blocks))
    counted = GPU_CODE_BYTES.get(kind)
    if weight is None:
        assert counted is None
    else:
        held = sum(each.numel() * each.element_size() for each in weight.tensors.values())
        assert held == ROWS * COLUMNS * counted


def test_codes_with_zeros_and_with_leasts_are_not_joined():
    values = torch.randn(ROWS, COLUMNS).numpy()
    pair = [
        from_gguf(stored_weight(kind.lower(), torch.from_numpy(quantize(values, Kind[kind]))))
        for kind in ("Q4_0", "Q4_1")
    ]
    assert concatenated([each for each in pair if each is not None]) is None
