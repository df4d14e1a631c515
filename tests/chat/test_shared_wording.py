"""Words of both front ends."""

import pytest

from dspark.chat.shared_wording import sampling_words
from dspark.config import SamplingChoice, SamplingConfig

QWEN = SamplingConfig(0.6, 20, 0.95)


@pytest.mark.parametrize(
    ("choice", "own", "said"),
    [
        (SamplingChoice(), SamplingConfig(), "greedy"),
        (SamplingChoice(), QWEN, "temperature 0.6, top-k 20, top-p 0.95"),
        (SamplingChoice(temperature=0.0, seed=3), QWEN, "greedy"),
        (SamplingChoice(top_k=0, top_p=1.0), QWEN, "temperature 0.6"),
        (SamplingChoice(temperature=1.0, seed=3), SamplingConfig(), "temperature 1, seed 3"),
        (SamplingChoice(), None, ""),
        (SamplingChoice(top_p=0.9), None, "top-p 0.9"),
        (SamplingChoice(temperature=0.7), None, "temperature 0.7"),
        (SamplingChoice(temperature=0.0), None, "greedy"),
    ],
)
def test_how_answers_are_sampled(choice, own, said):
    assert sampling_words(choice, own) == said
