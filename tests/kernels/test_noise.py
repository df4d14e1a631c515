"""The noise that a seed ties to places and tokens."""

import math
from decimal import Decimal, getcontext

import numpy as np
import torch

from dspark_kernels.noise import _words, gumbel_reference, gumbel_row, uniform_reference
from dspark_kernels.sampling import probabilities, race


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x64-10 as its paper writes it (Salmon et al. 2011)."""
    for _ in range(10):
        high, low = divmod(0xD2E7470EE14C6C93 * counter[0], 2**64)
        high2, low2 = divmod(0xCA5A826395121157 * counter[2], 2**64)
        counter = [high2 ^ counter[1] ^ key[0], low2, high ^ counter[3] ^ key[1], low]
        key = [(key[0] + 0x9E3779B97F4A7C15) % 2**64, (key[1] + 0xBB67AE8584CAA73B) % 2**64]
    return counter


def test_the_numbers_are_philoxs():
    # of Random123's own known answers
    assert philox([0] * 4, [0] * 2) == [
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
    ]  # fmt: skip
    for seed, place, stream in ((0, 0, 0), (2**64 - 1, 12, 0), (77, 4096, 1)):
        halves = []
        for group in (1, 2, 3):
            for number in philox([group, place, stream, 0], [seed, 0]):
                halves += [number % 2**32, number >> 32]
        assert _words(seed, place, 21, stream=stream).tolist() == halves[:21]
    assert np.array_equal(_words(-1, 5, 9, stream=0), _words(2**64 - 1, 5, 9, stream=0))


def test_gumbel_noise_is_rounded_once():
    getcontext().prec = 40
    row = gumbel_row(7, 30, 400)
    for word, noise in zip(_words(7, 30, 400, stream=0).tolist(), row.tolist(), strict=True):
        uniform = (Decimal(word) + Decimal("0.5")) / 2**32
        assert noise == np.float32(float(-(-uniform.ln()).ln()))


def test_no_noise_is_infinite(monkeypatch):
    from dspark_kernels import noise

    ends = np.array([0, 2**32 - 1], dtype="<u4")
    monkeypatch.setattr(noise, "token_words", lambda *_: ends)
    low, high = gumbel_row(0, 0, 2).tolist()
    assert low == np.float32(-math.log(33 * math.log(2)))
    assert math.isclose(high, 33 * math.log(2), rel_tol=1e-6)


def test_a_longer_row_begins_with_the_shorter_one():
    assert torch.equal(gumbel_row(3, 8, 1000)[:77], gumbel_row(3, 8, 77))


def test_a_race_draws_what_the_logits_say():
    """Over seeds, over places and over both: a correct race fails one in a million such tests."""
    logits = torch.tensor([2.0, 1.2, 0.4, -1.0, 0.0, 1.9])
    num_draws = 2000
    for settings in ((1.0, 0, 1.0), (0.7, 3, 1.0), (1.3, 0, 0.8)):
        probs = probabilities(logits, *settings)
        for where in ((1, 0), (0, 1), (3, 7)):
            drawn = [
                race(logits, gumbel_row(where[0] * n, where[1] * n, 6), *settings)
                for n in range(num_draws)
            ]
            counts = torch.tensor(drawn).bincount(minlength=6)
            assert not counts[probs == 0].any()
            expected = num_draws * probs[probs > 0]
            statistic = ((counts[probs > 0] - expected) ** 2 / expected).sum() / 2
            freedom = torch.tensor((len(expected) - 1) / 2)
            assert torch.special.gammaincc(freedom, statistic) > 1e-6


def test_neighbours_share_no_noise():
    """Correlations of 20,000 pairs stay within five of their standard deviations, 0.007 each."""
    count = 20_000
    rows = [gumbel_row(s, p, count) for s, p in ((1, 1), (1, 2), (2, 1), (2, 2), (1 << 32, 1))]
    rows.append(gumbel_row(1, 1, count + 1)[1:])
    assert torch.corrcoef(torch.stack(rows)).fill_diagonal_(0).abs().max() < 0.036
    several = gumbel_reference(torch.tensor([1, 1]), torch.tensor([1, 2]), count)
    assert torch.equal(several, torch.stack(rows[:2]))


def test_uniform_numbers_are_even():
    numbers = uniform_reference(torch.arange(2000), torch.arange(2000) % 3, 8)
    counts = (numbers * 10).long().flatten().bincount(minlength=10)
    assert counts.sum() == 16_000 and len(counts) == 10
    statistic = ((counts - 1600) ** 2 / 1600).sum() / 2
    assert torch.special.gammaincc(torch.tensor(4.5), statistic) > 1e-6
