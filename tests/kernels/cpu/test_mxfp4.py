"""FP4 in the bytes of its file times rows of 8 bits: near the plain product, and the same bits as
the reference in whole numbers, everywhere."""

import math

import pytest
import torch

from dspark_kernels.cpu.clamped_swiglu import clamped_swiglu, clamped_swiglu_reference
from dspark_kernels.cpu.file_weight import FileWeight, file_weight
from dspark_kernels.cpu.int8_rows import Int8Rows, round_int8, round_int8_reference
from dspark_kernels.cpu.mxfp4 import (
    Segment,
    multiply_mxfp4,
    multiply_segment_reference,
    multiply_segments,
    segment_table,
)
from dspark_kernels.cpu.runtime import using


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(11)


def random_fp4(rows: int, columns: int, generator: torch.Generator) -> FileWeight:
    codes = torch.randint(0, 256, (rows, columns // 2), generator=generator)
    scales = torch.randint(115, 126, (rows, columns // 32), generator=generator)
    return file_weight(codes.to(torch.uint8), scales.to(torch.uint8), 1, 32)


def by_reference(rows: Int8Rows, weight: FileWeight) -> torch.Tensor:
    out = torch.empty(len(rows), weight.shape[0])
    multiply_segment_reference(rows, Segment(weight, torch.arange(len(rows)), out))
    return out


def test_rounding_is_to_the_nearest_multiple_of_a_power_of_two(generator):
    x = torch.randn(9, 96, generator=generator) * torch.tensor(10.0) ** torch.arange(-4, 5)[:, None]
    x[0, :32], x[1, 32:64] = 0.0, 2.0**-101
    x[2, :32] = torch.tensor([127.0, 126.5, 125.5, -127.0] * 8)  # exact, and ties to even
    x[3, :32] = torch.tensor([127.0 + 2.0**-17, 1.0] * 16)  # the next number needs the scale 2
    values = round_int8_reference(x).values()
    for row in range(9):
        for group in range(3):
            part = x[row, 32 * group : 32 * group + 32].double()
            largest = float(part.abs().max())
            step = 2.0 ** math.ceil(math.log2(largest / 127.0)) if largest >= 2.0**-100 else 0.0
            nearest = [step * round(float(each) / step) if step else 0.0 for each in part]
            assert values[row, 32 * group : 32 * group + 32].tolist() == nearest
    assert values[2, :4].tolist() == [127.0, 126.0, 126.0, -127.0]
    assert values[3, 1] == 0.0  # half of the step 2, to even


def test_a_row_without_a_largest_number_is_no_number():
    x = torch.ones(3, 64)
    x[0, 5], x[1, 40] = torch.nan, -torch.inf
    values = round_int8_reference(x).half_scales()
    assert values.isnan().tolist() == [[True, False], [False, True], [False, False]]


def test_the_reference_is_the_product_of_what_was_rounded(generator):
    weight = random_fp4(48, 256, generator)
    rows = round_int8_reference(torch.randn(7, 256, generator=generator))
    exact = rows.values().double() @ weight.dequantized().double().t()
    result = by_reference(rows, weight).double()
    # eight groups, each rounded to 2^-24 of a partial sum
    torch.testing.assert_close(result, exact, rtol=0, atol=1e-6 * float(exact.abs().max()))


def test_rounding_costs_as_much_as_stated(generator):
    """Of a product with gaussian rows: 0.8 % (docs/log.md), 1 % at most."""
    weight, x = random_fp4(64, 1024, generator), torch.randn(32, 1024, generator=generator)
    exact = x.double() @ weight.dequantized().double().t()
    result = by_reference(round_int8_reference(x), weight).double()
    assert float((result - exact).norm() / exact.norm()) < 0.01


def test_every_variant_and_number_of_threads_gives_the_same_bits(runtimes, generator):
    for num_rows, num_outputs, width in ((1, 16, 32), (15, 48, 512), (4, 32, 1120), (3, 16, 96)):
        weight = random_fp4(num_outputs, width, generator)
        x = torch.randn(num_rows, width, generator=generator)
        x[0, :32] = 0.0
        x[-1, 0] = torch.nan if width == 96 else 300.0
        rows = round_int8_reference(x)
        expected = by_reference(rows, weight)
        for runtime in runtimes:
            with using(runtime):
                assert torch.equal(round_int8(x).data, rows.data), runtime.variant.name
                found = multiply_mxfp4(rows, weight)
                assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0)), (
                    runtime.variant.name
                )


def test_the_largest_codes_do_not_overflow(runtimes):
    for filling in (0x77, 0xFF, 0x7F):
        codes = torch.full((16, 64), filling, dtype=torch.uint8)
        weight = file_weight(codes, torch.full((16, 4), 127, dtype=torch.uint8), 1, 32)
        for sign in (1.0, -1.0):
            rows = round_int8_reference(torch.full((5, 128), 127.0 * sign))
            exact = rows.values() @ weight.dequantized().t()
            assert torch.equal(by_reference(rows, weight), exact)
            for runtime in runtimes:
                with using(runtime):
                    assert torch.equal(multiply_mxfp4(rows, weight), exact)


def test_segments_meet_their_own_rows(runtimes, generator):
    """Several weights in one call, each with some of the rows, into parts of one tensor."""
    rows = round_int8_reference(torch.randn(9, 64, generator=generator))
    weights = [random_fp4(32, 64, generator) for _ in range(3)]
    chosen = [torch.tensor(each, dtype=torch.long) for each in ([8, 0, 3, 3, 5], [], [7])]
    wide = [torch.empty(len(each), 64) for each in chosen]
    outs = [each[:, 32 * (index % 2) :][:, :32] for index, each in enumerate(wide)]
    segments = [Segment(*each) for each in zip(weights, chosen, outs, strict=True)]
    expected = [by_reference(rows, w)[each] for w, each in zip(weights, chosen, strict=True)]
    for runtime in runtimes:
        with using(runtime):
            for out in outs:
                out.fill_(torch.nan)
            multiply_segments(rows, segments)
        for out, right in zip(outs, expected, strict=True):
            assert torch.equal(out, right)
    with pytest.raises(ValueError, match="products"):
        segment_table([segments[0], Segment(weights[1], chosen[0], outs[2])])


def test_clamped_swiglu_is_the_same_everywhere(runtimes, generator):
    gate_up = 4.0 * torch.randn(5, 192, generator=generator)
    gate_up[3, 7] = torch.nan
    expected = clamped_swiglu_reference(gate_up, 2.5)
    gate, up = gate_up.double().chunk(2, dim=-1)
    exact = torch.nn.functional.silu(gate.clamp(max=2.5)) * up.clamp(-2.5, 2.5)
    error = (expected.values()[:3].double() - exact[:3]).abs()
    assert float(error.max()) <= 2.5 * 2.5 / 127  # half a step of the largest group's scale
    for runtime in runtimes:
        with using(runtime):
            assert torch.equal(clamped_swiglu(gate_up, 2.5).data, expected.data)
