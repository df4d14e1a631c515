"""RMSNorm and SwiGLU against their references: odd widths, both dtypes, rows that stand alone."""

import pytest
import torch

from dspark_kernels.norm import (
    add_rms_norm,
    add_rms_norm_reference,
    rms_norm,
    rms_norm_reference,
)
from dspark_kernels.swiglu import swiglu, swiglu_reference
from tests.kernels.closeness import assert_near

DTYPES = [torch.float32, torch.bfloat16]
WIDTHS = [1, 63, 1000]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(device, dtype, width):
    x = torch.randn(2, 3, width, device=device).to(dtype)
    weight = torch.randn(width, device=device).to(dtype)
    result = rms_norm(x, weight, 1e-6)
    assert_near(result, rms_norm_reference(x.double(), weight.double(), 1e-6))
    strided = torch.stack([x, -x], dim=1)[:, 0]
    assert torch.equal(rms_norm(strided, weight, 1e-6), result)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_add_rms_norm(device, dtype, width):
    x, residual = torch.randn(2, 5, width, device=device).to(dtype)
    weight = torch.randn(width, device=device).to(dtype)
    normed, total = add_rms_norm(x, residual, weight, 1e-6)
    expected, expected_total = add_rms_norm_reference(x, residual, weight, 1e-6)
    assert torch.equal(total, expected_total)
    assert_near(normed, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_normed_is_kept_as_a_tap(device, dtype):
    x, residual = torch.randn(2, 5, 63, device=device).to(dtype)
    weight = torch.randn(63, device=device).to(dtype)
    taps = torch.full((5, 2, 63), float("nan"), device=device, dtype=dtype)
    normed, total = add_rms_norm(x, residual, weight, 1e-6, taps[:, 1])
    assert torch.equal(taps[:, 1], total)
    assert torch.equal(rms_norm(total, weight, 1e-6, taps[:, 0]), normed)
    assert torch.equal(taps[:, 0], total)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_others(device, dtype):
    x = torch.randn(17, 1000, device=device).to(dtype)
    weight = torch.randn(1000, device=device).to(dtype)
    normed, gated = rms_norm(x, weight, 1e-6), swiglu(x)
    for num_rows in (1, 2, 16):
        assert torch.equal(rms_norm(x[:num_rows], weight, 1e-6), normed[:num_rows])
        assert torch.equal(swiglu(x[:num_rows]), gated[:num_rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [*WIDTHS, 1025])
def test_swiglu(device, dtype, width):
    gate_up = 3 * torch.randn(3, 2 * width, device=device).to(dtype)
    assert_near(swiglu(gate_up), swiglu_reference(gate_up.double()))


@pytest.mark.parametrize("trained", ["x", "weight"])
def test_training_keeps_the_form_that_has_a_gradient(device, trained):
    x = torch.randn(2, 63, device=device, requires_grad=trained == "x")
    weight = torch.ones(63, device=device, requires_grad=trained == "weight")
    rms_norm(x, weight, 1e-6).square().sum().backward()
    assert (x if trained == "x" else weight).grad is not None
