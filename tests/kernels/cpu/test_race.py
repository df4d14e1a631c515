"""Draws with a seed by the kernel: the tokens of the reference, on every variant."""

import numpy as np
import pytest
import torch

from dspark_kernels.cpu.race import RowRace, noise_words, race_rows
from dspark_kernels.cpu.runtime import using
from dspark_kernels.noise import _words, gumbel_row
from dspark_kernels.sampling import race

SEEDS = (0, 5, 2**63 + 9, 2**64 - 1)


def reference(row: RowRace) -> int:
    noise = gumbel_row(row.seed, row.place, len(row.logits))
    return race(row.logits, noise, row.temperature, 0, row.top_p)


def random_rows(num_rows: int, width: int, temperature: float, top_p: float) -> list[RowRace]:
    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(num_rows, width, generator=generator) * 4
    forbidden = torch.rand(num_rows // 2, width, generator=generator) < 0.5
    forbidden[:, width // 2] = False
    logits[: num_rows // 2].masked_fill_(forbidden, float("-inf"))
    return [
        RowRace(row, SEEDS[n % len(SEEDS)], n, temperature, top_p) for n, row in enumerate(logits)
    ]


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("temperature", [1e-3, 0.2, 1.0, 3.0])
@pytest.mark.parametrize("width", [1, 7, 16, 33, 1000])
def test_the_kernel_draws_what_the_reference_does(width, temperature, top_p, runtimes):
    rows = random_rows(24, width, temperature, top_p)
    expected = [reference(row) for row in rows]
    first = None
    for runtime in runtimes:
        with using(runtime):
            found = race_rows(rows)
            first = first or found
            assert found == first, runtime.variant.name
            assert found == [race_rows([row])[0] for row in rows]
            decided = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None]
            assert len(decided) >= 22 and all(a == b for a, b in decided), runtime.variant.name


@pytest.mark.parametrize("temperature", [1e-20, 1e-9, 1e9, 1e30])
def test_no_temperature_is_too_low_or_high(temperature, runtimes):
    rows = random_rows(12, 200, temperature, 1.0)
    with using(runtimes[0]):
        for row, token in zip(rows, race_rows(rows), strict=True):
            assert token in (None, reference(row))


def test_equal_logits_are_decided_by_noise(runtimes):
    """As often each: 1,200 draws from 3 of 48 tokens stay within five standard deviations."""
    logits = torch.full((48,), -30.0)
    logits[[1, 20, 47]] = 2.5
    with using(runtimes[0]):
        drawn = race_rows([RowRace(logits, 3, place, 0.1) for place in range(1200)])
        assert all(drawn[place] == reference(RowRace(logits, 3, place, 0.1)) for place in range(40))
    counts = [drawn.count(token) for token in (1, 20, 47)]
    assert sum(counts) == 1200 and all(abs(count - 400) < 82 for count in counts)


def test_the_edge_of_a_nucleus_is_the_references(runtimes):
    """Four tokens of mass 1/4: each is kept exactly if those before it are less than top_p."""
    logits = torch.full((40,), float("-inf"))
    logits[4:8] = torch.tensor([0.3, 0.2, 0.1, 0.0]) * 1e-3
    with using(runtimes[0]):
        for top_p in (0.2, 0.25, 0.4999, 0.5, 0.5001, 0.74, 0.76, 0.99):
            rows = [RowRace(logits, 3, place, 1e-3, top_p) for place in range(30)]
            for row, token in zip(rows, race_rows(rows), strict=True):
                assert token in (None, reference(row))


def test_rows_that_are_no_distribution_are_left_to_the_reference(runtimes):
    rows = torch.zeros(4, 20)
    rows[0, 3] = float("nan")
    rows[1, 19] = float("inf")
    rows[2] = float("-inf")
    rows[3, 17] = 30.0
    with using(runtimes[0]):
        assert race_rows([RowRace(row, 1, 1, 1.0) for row in rows]) == [None, None, None, 17]
        assert race_rows([RowRace(rows[3].double(), 1, 1, 1.0)]) == [None]


def test_a_near_tie_is_left_to_the_reference(runtimes):
    """Two logits so that both scores are the same in float32, or one number beside."""
    noise = gumbel_row(9, 4, 32)
    logits = torch.full((32,), -100.0)
    logits[3], logits[30] = 0.0, noise[3] - noise[30]
    with using(runtimes[0]):
        assert race_rows([RowRace(logits, 9, 4, 1.0)]) == [None]
        logits[30] += 1e-3
        assert race_rows([RowRace(logits, 9, 4, 1.0)]) == [30]


def test_words_are_numpys(runtimes):
    for runtime in runtimes:
        with using(runtime):
            for seed, place, count in ((0, 0, 1), (2**64 - 1, 5, 9), (-7, 4097, 5000)):
                expected = _words(seed, place, count, stream=0)
                assert np.array_equal(noise_words(seed, place, count), expected)
