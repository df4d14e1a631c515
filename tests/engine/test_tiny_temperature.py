"""A temperature that is positive and tiny writes what temperature 0 writes, never nan."""

import pytest
import torch

from dspark.config import LEAST_TEMPERATURE, SamplingConfig
from dspark_kernels import probabilities
from tests.engine.pairs import decode, golden, request

TINY = [1e-5, 1e-8, 1e-12, 1e-19, 1e-30, 1e-38, 1e-40, 5e-324]
FILTERS = [{}, {"top_k": 3}, {"top_p": 0.9}]


@pytest.mark.parametrize("variant", ["vanilla", "rnn"])
@pytest.mark.parametrize("plain", [True, False])
def test_it_writes_what_temperature_0_writes(variant, plain):
    engine = golden(variant).engine
    wanted = decode(engine, [request(max_tokens=24)])[0]
    asked = [
        request(max_tokens=24, plain=plain, temperature=temperature, seed=3, **filters)
        for temperature in TINY
        for filters in FILTERS
    ]
    assert decode(engine, asked) == [wanted] * len(asked)


def test_below_the_least_it_is_0_and_above_it_is_itself():
    assert SamplingConfig(temperature=LEAST_TEMPERATURE / 2).temperature == 0
    assert SamplingConfig(temperature=LEAST_TEMPERATURE).temperature == LEAST_TEMPERATURE
    assert SamplingConfig(temperature=-1.0).temperature == -1.0


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e4, 1e10, 1e17])
def test_the_least_temperature_divides_any_logits(scale):
    logits = torch.randn(4, 50) * scale
    for top_k, top_p in ((0, 1.0), (5, 1.0), (0, 0.9)):
        probs = probabilities(logits, LEAST_TEMPERATURE, top_k, top_p)
        assert torch.isfinite(probs).all()
        torch.testing.assert_close(probs.sum(-1), torch.ones(4))
        if scale >= 1:
            assert torch.equal(probs.argmax(-1), logits.argmax(-1))
            assert torch.equal(probs.amax(-1), torch.ones(4))
