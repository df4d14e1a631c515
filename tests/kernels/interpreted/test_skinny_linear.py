"""The skinny product against float64, and its rows against each other, bit for bit."""

import sys
from dataclasses import replace

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from dspark_kernels import ResidualStream, last_arriver
from dspark_kernels import dequantized_linear as dequantized
from dspark_kernels.cpu.stored_weight import stored_weight
from dspark_kernels.norm import rms_norm_reference
from dspark_kernels.quantized_weight import quantize_fp8, quantize_int4, quantize_int8
from dspark_kernels.repacked_weight import from_fp4, from_fp8, from_gguf
from dspark_kernels.skinny_linear import Tiling, skinny_linear, skinny_linear_reference
from tests.kernels.closeness import assert_near


def fp4(weight):
    """Any codes, scales that keep products as large as those of the others."""
    rows, columns = weight.shape
    device = weight.device
    codes = torch.randint(256, (rows, columns // 2), device=device).byte()
    return from_fp4(codes, torch.randint(124, 129, (rows, columns // 32), device=device).byte())


def of_gguf(kind):
    """As the gguf package quantizes."""

    def quantized(weight):
        blocks = quantize(weight.float().cpu().numpy(), GGMLQuantizationType[kind.upper()])
        stored = stored_weight(kind, torch.from_numpy(blocks))
        return from_gguf(stored).moved(lambda tensor: tensor.to(weight.device))

    return quantized


FORMATS = {
    "dense": lambda w: w,
    "int8": quantize_int8,
    "int8 groups": lambda w: quantize_int8(w, 64),
    "int4": quantize_int4,
    "int4 groups of 32": lambda w: quantize_int4(w, 32),
    "q4_1": of_gguf("q4_1"),
    "q8_0": of_gguf("q8_0"),
    "fp4": fp4,
    "fp8": quantize_fp8,
    "fp8 rows": lambda w: from_fp8(w.to(torch.float8_e4m3fn), torch.rand(w.shape[0]) + 0.5),
}


def expected_product(x, weight, bias, gated):
    weight = (
        weight.double() if isinstance(weight, torch.Tensor) else weight.dequantized(torch.float64)
    )
    bias = None if bias is None else bias.double()
    return skinny_linear_reference(x.double(), weight, bias, gated=gated)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("num_rows", "num_columns", "num_outputs"),
    [(1, 63, 65), (3, 1, 2), (7, 1000, 66), (17, 512, 66)],
)
def test_dense_product(device, dtype, gated, num_rows, num_columns, num_outputs):
    num_outputs *= 2 if gated else 1
    x = torch.randn(num_rows, num_columns, device=device).to(dtype)
    weight = torch.randn(num_outputs, num_columns, device=device).to(dtype)
    bias = torch.randn(num_outputs, device=device).to(dtype)
    for given in (None, bias):
        result = skinny_linear(x, weight, given, gated=gated)
        assert result.dtype == dtype
        assert_near(result, expected_product(x, weight, given, gated))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "dense"])
@pytest.mark.parametrize("gated", [False, True])
def test_quantized_product(device, dtype, name, gated):
    x = torch.randn(5, 256, device=device).to(dtype)
    weight = FORMATS[name](torch.randn(130, 256, device=device))
    assert_near(skinny_linear(x, weight, gated=gated), expected_product(x, weight, None, gated))


@pytest.mark.parametrize(
    ("name", "numbers_of_rows"),
    [
        ("dense", (1, 2, 3, 5, 8, 15, 16, 17, 33, 64)),
        ("int8", (8, 17, 64)),
        ("int4", (8, 17, 64)),
        ("q4_1", (8, 17, 64)),
        ("fp8", (8, 17, 64)),
        ("fp4", (8, 17, 64)),
    ],
)
@pytest.mark.parametrize("gated", [False, True])
def test_a_row_does_not_depend_on_the_number_of_rows(device, name, numbers_of_rows, gated):
    width = 256 if name in ("fp4", "q4_1") else 1024
    x = torch.randn(64, width, device=device).bfloat16()
    weight = FORMATS[name](torch.randn(24, width, device=device).bfloat16())
    rows = (0, 1, 7, 15, 16, 32, 63)
    alone = {row: skinny_linear(x[row : row + 1], weight, gated=gated)[0] for row in rows}
    for num_rows in numbers_of_rows:
        result = skinny_linear(x[:num_rows], weight, gated=gated)
        assert all(torch.equal(result[row], alone[row]) for row in alone if row < num_rows)


def test_the_cut_of_a_matrix_covers_it():
    for num_outputs, num_columns in ((6144, 2560), (9728, 2560), (2560, 9728), (151936, 4096)):
        tiling = Tiling.of(num_outputs, num_columns, "dense", num_columns, 2)
        assert tiling.num_splits * tiling.block_k <= num_columns


def test_every_fp4_code_and_scale_is_read_exactly(device):
    """One column of x is one: the product is the weight, to the bit. A row a scale."""
    scales = torch.tensor([0, 1, 100, 126, 127, 128, 254, 255], device=device).byte()
    codes = torch.arange(256, device=device).byte().repeat(len(scales), 1)
    weight = from_fp4(codes, scales.view(-1, 1).repeat(1, 16))
    x = torch.eye(512, device=device)
    product = torch.cat([skinny_linear(part, weight) for part in x.split(64)]).t()
    expected = weight.dequantized(torch.float32)
    assert torch.equal(product[:-1], expected[:-1])
    assert bool(product[-1].isnan().all()) and bool(expected[-1].isnan().all())


@pytest.mark.parametrize("name", ["int4 groups of 32", "q4_1", "fp4"])
def test_a_single_group(device, name):
    x = torch.randn(3, 32, device=device)
    weight = FORMATS[name](torch.randn(66, 32, device=device))
    assert_near(skinny_linear(x, weight), expected_product(x, weight, None, False))


@pytest.mark.parametrize("name", ["dense", "int4"])
def test_weights_are_read_once_for_all_rows_of_a_pass(device, name, monkeypatch):
    """No program is for some of the rows only: the next would read the same weights again."""
    weight = FORMATS[name](torch.randn(256, 256, device=device))
    grids = []

    class Spy:
        def __getitem__(self, grid):
            grids.append(grid)
            return whole[grid]

    skinny = sys.modules["dspark_kernels.skinny_linear"]  # the package offers the function
    whole = skinny.skinny_kernel
    monkeypatch.setattr(skinny, "skinny_kernel", Spy())
    for num_rows in (1, 16, 17, 64):
        skinny_linear(torch.randn(num_rows, 256, device=device), weight)
    assert len(grids) == 4 and len(set(grids)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "dense"])
def test_weights_of_a_long_prompt_are_unpacked_to_the_bit_and_in_slices(
    device, dtype, name, monkeypatch
):
    monkeypatch.setattr(dequantized, "SLICE_NUMBERS", 128 * 128)
    weight = FORMATS[name](torch.randn(258, 128, device=device))
    unpacked = torch.cat([numbers(weight, first, dtype) for first in (0, 128, 256)])
    assert torch.equal(unpacked, weight.dequantized(dtype))
    x = torch.randn(65, 128, device=device).to(dtype)
    bias = torch.randn(258, device=device).to(dtype)
    for gated in (False, True):
        result = skinny_linear(x, weight, bias, gated=gated)
        assert_near(result, expected_product(x, weight, bias, gated))


def numbers(weight, first, dtype):
    out = torch.empty(min(128, 258 - first), 128, dtype=dtype, device=weight.codes.device)
    dequantized.dequantize_rows(weight, first, out)
    return out


def test_columns_in_another_order_meet_their_own_codes(device):
    weight = quantize_int4(torch.randn(66, 256, device=device))
    weight = replace(weight, order=torch.randperm(256, device=device))
    x = torch.randn(65, 256, device=device)
    assert_near(skinny_linear(x, weight), expected_product(x, weight, None, False))


@pytest.mark.parametrize("name", ["dense", "int4"])
@pytest.mark.parametrize("gated", [False, True])
def test_parts_are_added_in_their_order_whoever_comes_last(device, name, gated, backwards):
    x = torch.randn(17, 2048, device=device).bfloat16()
    weight = FORMATS[name](torch.randn(66, 2048, device=device).bfloat16())
    assert Tiling.of(33, 2048, name, 128, 2).num_splits > 1
    first = skinny_linear(x, weight, gated=gated)
    backwards()
    assert torch.equal(skinny_linear(x, weight, gated=gated), first)
    assert not any(counters.any() for counters in last_arriver._COUNTERS.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_columns", [64, 2048])
def test_the_residual_stream_is_added_to_the_rounded_product(device, dtype, num_columns):
    x = torch.randn(3, num_columns, device=device).to(dtype)
    weight = torch.randn(66, num_columns, device=device).to(dtype)
    bias = torch.randn(66, device=device).to(dtype)
    total = torch.randn(3, 66, device=device).to(dtype)
    stream = ResidualStream(total).plus_linear(x, weight, bias)
    assert stream.update is None
    assert torch.equal(stream.total, total + skinny_linear(x, weight, bias))


def test_a_long_prompt_is_added_by_the_next_norm(device):
    x, weight = torch.randn(65, 32, device=device), torch.randn(66, 32, device=device)
    total, norm = torch.randn(65, 66, device=device), torch.randn(66, device=device)
    normed, stream = ResidualStream(total).plus_linear(x, weight).normed(norm, 1e-6)
    assert_near(stream.total, total.double() + x.double() @ weight.double().t())
    assert_near(normed, rms_norm_reference(stream.total.double(), norm.double(), 1e-6))
