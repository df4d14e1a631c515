"""Exponentials and sums of a written order, as torch computes them."""

import pytest
import torch

from dspark_kernels.cpu.float_text import exp, tree_sum


def test_exp_is_near_the_true_one():
    x = torch.cat([torch.linspace(-87, 88, 20_001), torch.linspace(-1, 1, 20_001)])
    error = (exp(x).double() / x.double().exp() - 1).abs().max()
    assert error < 2.0**-23 * 1.5


def test_exp_at_its_ends():
    ends = torch.tensor([0.0, -87.1, -1e30, -float("inf"), 89.0, float("inf"), float("nan")])
    result = exp(ends)
    assert result[:4].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert result[4] == result[5] == exp(torch.tensor([88.0]))[0]
    assert result[6].isnan()


def test_a_tree_adds_all():
    x = torch.randint(-50, 50, (3, 16)).float()
    assert torch.equal(tree_sum(x), x.sum(-1))


@pytest.mark.parametrize("lane", range(16))
def test_a_tree_takes_each_lane_once(lane):
    x = torch.zeros(16)
    x[lane] = 1.0
    assert tree_sum(x) == 1.0
