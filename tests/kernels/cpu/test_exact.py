"""The reference's fused product and sum, against the C library's."""

import ctypes
import ctypes.util

import numpy as np
import pytest
import torch

from dspark_kernels.cpu.exact import fma, sqrt


@pytest.fixture
def fmaf():
    name = ctypes.util.find_library("m")
    if name is None:
        pytest.skip("no C library with fmaf")
    function = ctypes.CDLL(name).fmaf
    function.argtypes, function.restype = [ctypes.c_float] * 3, ctypes.c_float
    return function


def test_it_rounds_once(fmaf):
    generator = torch.Generator().manual_seed(1)
    a, b, c = torch.randn(3, 4000, generator=generator)
    c[:1000] = -(a[:1000] * b[:1000])  # all but cancels: what is left is the product's own error
    c[1000:2000] *= 2.0**-26  # halfway cases of a double rounding
    c[2000:2500] *= 2.0**-140
    expected = torch.tensor([fmaf(*map(float, each)) for each in zip(a, b, c, strict=True)])
    assert torch.equal(fma(a, b, c), expected)
    # the sum of these is a tie in float64 and none in float32
    one, tiny = torch.tensor(1.0), torch.tensor(2.0**-24)
    for x, y, z in (
        (one, one, tiny),
        (one + 2**-23, tiny, one),
        (tiny, tiny - 2**-60, one + 2**-23),
    ):
        assert float(fma(x, y, z)) == fmaf(float(x), float(y), float(z))


def test_what_is_not_finite_stays_so():
    infinity, nan = torch.tensor(float("inf")), torch.tensor(float("nan"))
    one = torch.tensor(1.0)
    assert fma(infinity, one, one) == infinity
    assert fma(one, one, -infinity) == -infinity
    assert fma(infinity, one, -infinity).isnan() and fma(one, nan, one).isnan()


def test_a_root_is_rounded_once():
    x = torch.rand(10_000) * 2.0 ** torch.randint(-100, 100, (10_000,))
    assert torch.equal(sqrt(x), torch.from_numpy(np.sqrt(x.numpy())))
