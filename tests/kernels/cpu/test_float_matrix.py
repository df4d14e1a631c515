"""Rows of float32 times weights as a file stores them: near the plain product, and the same bits
everywhere."""

import pytest
import torch

from dspark_kernels.cpu.file_weight import FileWeight, file_weight, has_invalid_scale
from dspark_kernels.cpu.float_matrix import multiply_floats, multiply_floats_reference
from dspark_kernels.cpu.runtime import using

KINDS = ("float32", "bfloat16", "fp8", "fp4")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(11)


def random_weight(kind: str, rows: int, columns: int, generator: torch.Generator) -> FileWeight:
    """All codes that are numbers; blocks of 32 x 64, the last of them cut off below."""
    if kind in ("float32", "bfloat16"):
        weight = torch.randn(rows, columns, generator=generator)
        return file_weight(weight.to(getattr(torch, kind)))

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        drawn = torch.randint(low, high, shape, generator=generator)
        return drawn.to(torch.uint8)

    if kind == "fp4":
        scales = draw(120, 130, rows, columns // 32)
        return file_weight(draw(0, 256, rows, columns // 2), scales, 1, 32)
    codes = draw(0, 127, rows, columns) | draw(0, 2, rows, columns) << 7
    scales = draw(110, 120, -(-rows // 32), columns // 64)
    return file_weight(codes.view(torch.float8_e4m3fn), scales, 32, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_product(kind, generator):
    weight = random_weight(kind, 41, 256, generator)
    x = torch.randn(7, 256, generator=generator)
    exact = x.double() @ weight.dequantized().double().t()
    result = multiply_floats_reference(x, weight).double()
    # 16 terms a lane and a tree of four, each rounded to 2^-24 of a partial sum
    torch.testing.assert_close(result, exact, rtol=0, atol=4e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("kind", ["fp8", "fp4"])
def test_codes_mean_what_the_formats_say(kind):
    """Every code, by torch's own type or the published table, times its scale."""
    if kind == "fp8":
        codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
        codes = codes[~codes.float().isnan()].repeat(2)[:256].view(1, 256)
        scale = torch.tensor([[126]], dtype=torch.uint8)
        weight, values = file_weight(codes, scale, 1, 256), codes.float()
    else:
        grid = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
        values = torch.tensor([*grid, *(-each for each in grid)] * 2).view(1, 32)
        pairs = torch.tensor([low | low + 1 << 4 for low in range(0, 16, 2)] * 2)
        scale = torch.tensor([[126]], dtype=torch.uint8)
        weight = FileWeight("fp4", pairs.to(torch.uint8).view(1, 16), scale, 1, 32)
    assert torch.equal(weight.dequantized(), values / 2)
    ones = torch.eye(values.shape[1])
    assert torch.equal(multiply_floats_reference(ones, weight).t(), values / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_variant_and_number_of_threads_gives_the_same_bits(kind, runtimes, generator):
    for num_rows, num_outputs, width in ((1, 1, 64), (7, 33, 128), (4, 6, 192), (46, 33, 128)):
        weight = random_weight(kind, num_outputs, width, generator)
        x = torch.randn(num_rows, width + 16, generator=generator)[:, :width]
        expected = multiply_floats_reference(x, weight)
        for runtime in runtimes:
            with using(runtime):
                assert torch.equal(multiply_floats(x, weight), expected), runtime.variant.name


def test_a_row_is_the_same_in_any_company(runtimes, generator):
    weight = random_weight("fp8", 48, 512, generator)
    x = torch.randn(46, 512, generator=generator)
    for runtime in runtimes:
        with using(runtime):
            alone = torch.cat([multiply_floats(row.unsqueeze(0), weight) for row in x])
            for num_rows in (2, 7, 21, 39, 46):  # tiles, panels, and what is left behind a panel
                assert torch.equal(multiply_floats(x[:num_rows], weight), alone[:num_rows])


def test_rows_of_a_weight_are_a_weight(generator):
    weight = random_weight("fp8", 96, 128, generator)
    assert torch.equal(weight.rows(32, 70).dequantized(), weight.dequantized()[32:70])
    with pytest.raises(ValueError, match="inside a block"):
        weight.rows(33, 64)


def test_what_does_not_fit_is_refused(generator):
    weight = random_weight("fp8", 33, 128, generator)
    with pytest.raises(ValueError, match="meet 128 inputs"):
        multiply_floats(torch.zeros(1, 64), weight)
    with pytest.raises(ValueError, match="scales are"):
        FileWeight("fp8", weight.codes, weight.scales[:1], 32, 64)
    for byte in (0, 255):
        assert has_invalid_scale(torch.tensor([[127, byte]], dtype=torch.uint8))
    assert not has_invalid_scale(torch.tensor([[1, 254]], dtype=torch.uint8))
