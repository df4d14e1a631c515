"""Every operation against its plain meaning, on odd shapes."""

import weakref

import pytest
import torch
import torch.nn.functional as F

from dspark_kernels import (
    RotaryTable,
    SkinnyLinear,
    accept_greedy,
    apply_rope,
    draw,
    rms_norm,
    swiglu,
)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 15, 16, 17, 64])
@pytest.mark.parametrize("sizes", [(576, 960), (48, 65), (1, 3)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_skinny_linear_is_a_linear(num_rows, sizes, has_bias):
    width, out = sizes
    weight, x = torch.randn(out, width), torch.randn(num_rows, width)
    bias = torch.randn(out) if has_bias else None
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    for prepack in (True, False):
        result = SkinnyLinear(weight, bias, prepack=prepack)(x)
        torch.testing.assert_close(result.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("width", [33, 576, 1536, 4096])
def test_rows_of_a_packed_linear_do_not_depend_on_their_number(width):
    linear = SkinnyLinear(torch.randn(960, width), torch.randn(960))
    if linear._prepacked is None:
        pytest.skip("this build of torch packs no weights")
    x = torch.randn(64, width)
    whole = linear(x)
    for num_rows in range(1, 64):
        assert torch.equal(linear(x[:num_rows].contiguous()), whole[:num_rows])


@pytest.mark.parametrize("num_rows", [65, 100, 257])
@pytest.mark.parametrize("width", [48, 2048])
def test_the_rows_of_a_prompt_are_those_of_a_linear(num_rows, width):
    weight, x = torch.randn(96, width), torch.randn(num_rows, width)
    expected = F.linear(x.double(), weight.double())
    result = SkinnyLinear(weight)(x)
    torch.testing.assert_close(result.double(), expected, atol=1e-3, rtol=1e-5)


def test_a_packed_weight_is_held_once():
    weight = torch.randn(64, 48)
    gone, shared = weakref.ref(weight), SkinnyLinear(weight, is_shared=True)
    linear = SkinnyLinear(weight)
    if linear._prepacked is None:
        pytest.skip("this build of torch packs no weights")
    assert shared.weight is weight
    x = torch.randn(3, 48)
    expected = F.linear(x, weight)
    del weight, shared
    assert gone() is None
    torch.testing.assert_close(linear(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(dtype):
    x, weight = torch.randn(5, 33).to(dtype), torch.randn(33).to(dtype)
    x64 = x.double()
    expected = x64 / (x64.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    close = 1e-5 if dtype == torch.float32 else 2e-2
    result = rms_norm(x, weight, 1e-5)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, atol=close, rtol=close)


def test_swiglu():
    gate, up = torch.randn(3, 7), torch.randn(3, 7)
    expected = gate * torch.sigmoid(gate) * up
    torch.testing.assert_close(swiglu(torch.cat([gate, up], -1)), expected)


def test_rope_depends_on_distance_only_and_grows():
    table = RotaryTable(1e4 ** (-torch.arange(0, 16, 2) / 16), 1.0, torch.float32)
    query, key = torch.randn(1, 1, 16), torch.randn(1, 1, 16)

    def score(position, distance):
        at = [table.at(torch.tensor([p]), p) for p in (position + distance, position)]
        return (apply_rope(query, *at[0]) * apply_rope(key, *at[1])).sum()

    for distance in (0, 1, 30):
        torch.testing.assert_close(score(0, distance), score(3000, distance), atol=1e-3, rtol=1e-3)


def test_greedy_acceptance():
    logits = F.one_hot(torch.tensor([4, 2, 7, 1]), 9).float()
    assert accept_greedy(torch.tensor([4, 2, 7]), logits) == (3, 1)
    assert accept_greedy(torch.tensor([4, 3, 7]), logits) == (1, 2)
    assert accept_greedy(torch.tensor([], dtype=torch.long), logits[:1]) == (0, 4)


def test_a_draw_never_has_probability_zero():
    generator = torch.Generator().manual_seed(0)
    probs = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    drawn = [draw(probs, generator) for _ in range(2000)]
    assert set(drawn) == {1, 3}
    # three standard deviations of 2,000 draws
    assert abs(drawn.count(3) / 2000 - 0.75) < 0.03
