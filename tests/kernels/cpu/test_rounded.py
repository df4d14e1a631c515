"""Rows of 16 bits: what is stored, in every variant, and rows that make no sense."""

import numpy as np
import pytest
import torch

from dspark_kernels.cpu.rounded import round_rows, round_rows_reference
from dspark_kernels.cpu.runtime import using


def code(scaled: np.ndarray) -> np.ndarray:
    """Of two bytes; `scaled` lies between -127 and 127."""
    first = np.rint(scaled)
    second = np.rint((scaled - first) * np.float32(256))
    return (256 * first + second.clip(-127, 127)).astype(np.int32)


def plainly(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """codes and scales, group after group."""
    codes, scales = np.zeros(x.shape, np.int32), np.zeros((len(x), x.shape[1] // 32), np.float32)
    for row in range(len(x)):
        for group in range(scales.shape[1]):
            values = x[row, 32 * group : 32 * group + 32]
            largest = np.abs(values).max()
            if largest >= np.float32(2.0**-100):
                scales[row, group] = largest / np.float32(127) / np.float32(256)
                inverse = np.float32(127) / largest
                codes[row, 32 * group : 32 * group + 32] = code(values * inverse)
    return codes, scales


def vectorised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same for many rows without tiny groups."""
    groups = x.reshape(len(x), -1, 32)
    largest = np.abs(groups).max(-1, keepdims=True)
    codes = code(groups * (np.float32(127) / largest))
    return codes.reshape(x.shape), (largest / np.float32(127) / np.float32(256))[..., 0]


@pytest.mark.parametrize("num_rows", [1, 2, 7, 8, 9, 20])
@pytest.mark.parametrize("width", [32, 96, 576])
def test_what_is_stored(num_rows, width):
    x = torch.randn(num_rows, width) * 10.0 ** torch.randint(-3, 4, (num_rows, 1))
    x[0, :32], x[-1, 0], x[-1, 1] = 0.0, 12.7, 0.049985  # nearly half a first byte
    codes, scales = plainly(x.numpy())
    rounded = round_rows_reference(x)
    assert np.array_equal(rounded.codes().numpy(), codes)
    assert np.array_equal(rounded.scales().numpy(), scales)
    sums = codes.reshape(num_rows, -1, 32).sum(-1, dtype=np.int32)
    assert np.array_equal(rounded.sums().numpy(), -8 * sums)
    assert np.array_equal(rounded.scaled_sums().numpy(), scales * sums.astype(np.float32))
    assert (rounded.values() - x).abs().max() <= x.abs().max() / 127 / 256 * 1.01


def test_no_code_is_off_by_a_second_rounding(runtimes):
    """Many rows, because few codes are so near to a half that it shows."""
    x = torch.randn(4000, 256) * 2.0**-13
    codes, scales = vectorised(x.numpy())
    rounded = [round_rows_reference(x)]
    for runtime in runtimes:
        with using(runtime):
            rounded.append(round_rows(x))
    for each in rounded:
        assert np.array_equal(each.codes().numpy(), codes)
        assert np.array_equal(each.scales().numpy(), scales)


def test_every_variant_stores_the_same(runtimes):
    for num_rows in (1, 3, 8, 13, 64):
        x = torch.randn(num_rows, 160)
        x[0, 0], x[-1, 33], x[0, 64:96] = 127.0, 0.5, 0.0
        x[-1, 96:128] *= 1e-38  # below what is told from zero
        x[0, 128:160] = torch.arange(32) - 15.5  # ties go to the even code
        expected = round_rows_reference(x).data
        for runtime in runtimes:
            with using(runtime):
                assert torch.equal(round_rows(x).data, expected), runtime.variant.name


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_group_with_what_is_not_finite_is_not_a_number(bad, runtimes):
    x = torch.randn(2, 96)
    x[1, 40] = bad
    results = [round_rows_reference(x)]
    for runtime in runtimes:
        with using(runtime):
            results.append(round_rows(x))
    for rounded in results:
        assert rounded.scales()[1].isnan().tolist() == [False, True, False]
        assert rounded.scales()[0].isfinite().all()
        assert rounded.values()[1, 32:64].isnan().all()


@pytest.mark.parametrize("width", [0, 1, 31, 33, 40])
def test_a_width_without_whole_groups_is_refused(width):
    with pytest.raises(ValueError, match="groups of 32"):
        round_rows(torch.zeros(2, width))
