"""What lies between the matrices: near its plain meaning, and the same bits in every variant."""

import pytest
import torch
import torch.nn.functional as F

from dspark_kernels.cpu.argmax import argmax, argmax_reference
from dspark_kernels.cpu.embed import embed, embed_reference
from dspark_kernels.cpu.formats import FORMATS
from dspark_kernels.cpu.norm_round import norm_reference, norm_round, norm_round_reference
from dspark_kernels.cpu.runtime import using
from dspark_kernels.cpu.swiglu_round import swiglu_round, swiglu_round_reference
from tests.kernels.cpu.random_weights import random_weight


@pytest.mark.parametrize("width", [32, 576])
def test_norm_is_a_norm(width):
    x, weight = torch.randn(4, width) * 3, torch.randn(width)
    expected = F.rms_norm(x.double(), (width,), weight.double(), 1e-5)
    torch.testing.assert_close(
        norm_reference(x, weight, 1e-5).double(), expected, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("num_rows", [1, 5, 8, 19])
@pytest.mark.parametrize("width", [32, 96, 576])
@pytest.mark.parametrize("has_update", [False, True])
def test_every_variant_norms_alike(num_rows, width, has_update, runtimes):
    x, weight = torch.randn(num_rows, width), torch.randn(width)
    update = torch.randn(num_rows, width) if has_update else None
    rounded, normed, total = norm_round_reference(x, update, weight, 1e-6)
    before = x.clone()
    for runtime in runtimes:
        with using(runtime):
            result = norm_round(x, update, weight, 1e-6)
        assert torch.equal(result[0].data, rounded.data), runtime.variant.name
        assert torch.equal(result[1], normed) and torch.equal(result[2], total)
        assert torch.equal(x, before)


def test_swiglu_is_a_swiglu():
    gate_up = torch.randn(5, 192) * 4
    gate, up = gate_up.double().chunk(2, dim=-1)
    rounded = swiglu_round_reference(gate_up)
    error = (rounded.values().double() - F.silu(gate) * up).abs().unflatten(1, (-1, 32)).amax(-1)
    assert (error <= rounded.scales().double() * 1.01).all()  # a second byte of 128 becomes 127


@pytest.mark.parametrize("num_rows", [1, 3, 8, 21])
@pytest.mark.parametrize("width", [32, 160, 1536])
def test_every_variant_gates_alike(num_rows, width, runtimes):
    gate_up = torch.randn(num_rows, 2 * width) * 5
    gate_up[0, :4] = torch.tensor([0.0, -100.0, 100.0, -87.5])
    expected = swiglu_round_reference(gate_up).data
    for runtime in runtimes:
        with using(runtime):
            assert torch.equal(swiglu_round(gate_up).data, expected), runtime.variant.name


@pytest.mark.parametrize("width", [1, 5, 16, 33, 1000])
def test_the_first_of_the_largest_is_found(width, runtimes):
    logits = torch.randint(-3, 4, (9, width)).float()
    logits[1] = float("-inf")
    logits[2] = -0.0
    logits[2, width // 2] = 0.0  # no larger than -0
    logits[3] = float("-inf")
    logits[3, -1] = -1e38
    logits[4, width // 3] = float("nan")
    logits[5, width // 2] = -float("nan")
    logits[6, width // 2 :] = float("inf")
    expected = argmax_reference(logits)
    assert expected.is_sound.tolist() == [1, 0, 1, 1, 0, 0, 0, 1, 1]
    firsts = [int((row == row.max()).nonzero()[0]) for row in logits[6:]]
    assert expected.place[6:].tolist() == firsts
    for runtime in runtimes:
        with using(runtime):
            assert all(map(torch.equal, argmax(logits), expected)), runtime.variant.name
            apart = torch.full((9, width + 7), 1e30)
            apart[:, :width] = logits
            assert all(map(torch.equal, argmax(apart[:, :width]), expected))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_variant_embeds_alike(kind, runtimes):
    weight = random_weight(kind, 37, 512, torch.Generator().manual_seed(3))
    token_ids = torch.tensor([0, 36, 15, 16, 16, 31, 7])
    expected = embed_reference(weight, token_ids)
    for runtime in runtimes:
        with using(runtime):
            assert torch.equal(embed(weight, token_ids), expected), runtime.variant.name


def test_a_token_without_a_row_is_refused():
    weight = random_weight("q8_0", 37, 32, torch.Generator().manual_seed(3))
    for wrong in (torch.tensor([3, 37]), torch.tensor([-1]), torch.tensor([1], dtype=torch.int32)):
        with pytest.raises(ValueError, match="tokens"):
            embed(weight, wrong)
