"""Stored weights times rounded rows: near the plain product, and the same bits everywhere."""

import random

import pytest
import torch

from dspark_kernels.cpu.formats import FORMATS
from dspark_kernels.cpu.matrix import multiply, multiply_reference
from dspark_kernels.cpu.rounded import round_rows, round_rows_reference
from dspark_kernels.cpu.runtime import using
from dspark_kernels.cpu.stored_weight import stored_weight
from tests.kernels.cpu.random_weights import random_weight

NUM_BLOCKS = {False: (*range(1, 9), 17, 18, 19, 37), True: (1, 1, 1, 2, 2, 3, 5)}  # of a row


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(11)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_reference_is_the_product(kind, generator):
    weight = random_weight(kind, 37, 512, generator)
    rows = round_rows_reference(torch.randn(11, 512, generator=generator))
    bias = torch.randn(37, generator=generator)
    exact = rows.values().double() @ weight.dequantized().double().t() + bias.double()
    result = multiply_reference(rows, weight, bias).double()
    # 16 or 32 terms of float32, each rounded
    torch.testing.assert_close(result, exact, rtol=0, atol=4e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_variant_and_number_of_threads_gives_the_same_bits(kind, runtimes, generator):
    for num_rows, num_outputs, groups, has_bias in (
        (1, 1, 1, False),
        (64, 33, 2, True),
        (5, 16, 3, True),
        (8, 100, 1, False),
        (13, 31, 2, False),
        (26, 17, 361 if FORMATS[kind].block == 32 else 46, True),  # many groups, and a few more
    ):
        width = FORMATS[kind].block * groups
        weight = random_weight(kind, num_outputs, width, generator)
        bias = torch.randn(num_outputs, generator=generator) if has_bias else None
        rows = round_rows_reference(torch.randn(num_rows, width, generator=generator))
        expected = multiply_reference(rows, weight, bias)
        for runtime in runtimes:
            with using(runtime):
                assert torch.equal(multiply(rows, weight, bias), expected), runtime.variant.name


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q6_k"])
def test_a_row_is_the_same_in_any_company(kind, runtimes, generator):
    weight = random_weight(kind, 48, 512, generator)
    x = torch.randn(64, 512, generator=generator)
    draw = random.Random(3)
    for runtime in runtimes:
        with using(runtime):
            alone = [multiply(round_rows(row.unsqueeze(0)), weight)[0] for row in x]
            for num_rows in range(1, 65, 7 if runtime.variant.name == "generic" else 1):
                chosen = draw.sample(range(64), num_rows)
                together = multiply(round_rows(x[chosen]), weight)
                assert torch.equal(together, torch.stack([alone[i] for i in chosen]))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_largest_codes_do_not_overflow(kind, runtimes):
    """All codes at their ends, where int16 sums of pairs are fullest."""
    width, form = FORMATS[kind].block, FORMATS[kind]
    for filling in (0, 255):
        blocks = torch.full((16, form.block_bytes), filling, dtype=torch.uint8)
        at = 208 if kind == "q6_k" else 0
        blocks[:, at : at + (4 if form.has_least else 2)] = torch.tensor([0, 60, 0, 60])[
            : 4 if form.has_least else 2
        ]
        weight = stored_weight(kind, blocks)
        for sign in (1.0, -1.0):
            x = torch.full((25, width), sign)
            x[:, 1:] *= 126.502 / 127  # a second byte of -127
            rows = round_rows_reference(x)
            expected = multiply_reference(rows, weight)
            exact = rows.values().double() @ weight.dequantized().double().t()
            torch.testing.assert_close(expected.double(), exact, rtol=1e-5, atol=1e-3)
            for runtime in runtimes:
                with using(runtime):
                    assert torch.equal(multiply(rows, weight), expected), runtime.variant.name


def test_what_does_not_fit_is_refused(generator):
    weight = random_weight("q4_0", 16, 64, generator)
    with pytest.raises(ValueError, match="96 numbers meet a weight of 64"):
        multiply(round_rows_reference(torch.zeros(1, 96)), weight)
    with pytest.raises(ValueError, match="bias"):
        multiply(round_rows_reference(torch.zeros(1, 64)), weight, torch.zeros(15))


@pytest.mark.long
@pytest.mark.parametrize("part", range(20))
def test_twenty_thousand_random_shapes(part, runtimes):
    """In parts, so that a run that was cut off can go on where it ended."""
    draw, generator = random.Random(17 + part), torch.Generator().manual_seed(11 + part)
    for _ in range(1000):
        kind = draw.choice(list(FORMATS))
        width = FORMATS[kind].block * draw.choice(NUM_BLOCKS[FORMATS[kind].is_super])
        weight = random_weight(kind, draw.randint(1, 70), width, generator)
        num_rows = draw.randint(1, 64)
        x = torch.randn(num_rows, width, generator=generator) * 2.0 ** draw.randint(-20, 20)
        expected = multiply_reference(round_rows_reference(x), weight)
        first = draw.randrange(num_rows)
        last = draw.randint(first + 1, num_rows)
        for runtime in runtimes:
            with using(runtime):
                assert torch.equal(multiply(round_rows(x), weight), expected)
                some = multiply(round_rows(x[first:last]), weight)
                assert torch.equal(some, expected[first:last])
