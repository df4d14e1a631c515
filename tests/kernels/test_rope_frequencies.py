"""The same bits as the RoPE of transformers, for every kind whose frequencies are fixed."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from dspark_kernels.rope_frequencies import rope_frequencies

LINEAR = {"rope_type": "linear", "factor": 6.0}
LLAMA3 = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
ROPES = [
    {"rope_type": "default"},
    LINEAR,
    LINEAR | {"factor": 0.5},
    LLAMA3,
    LLAMA3 | {"factor": 32, "original_max_position_embeddings": 128},
    YARN,
    YARN | {"factor": 0.5},
    YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    YARN | {"attention_factor": 1.25},
    YARN | {"mscale": 0.707, "mscale_all_dim": 1.0},
    YARN | {"original_max_position_embeddings": 8},  # the ramp has no width
]


@pytest.mark.parametrize("theta", [10_000.0, 1e6, 500000])
@pytest.mark.parametrize("head_dim", [4, 64, 96, 128])
@pytest.mark.parametrize("rope", ROPES, ids=str)
def test_frequencies_and_scaling_are_those_of_transformers(rope, head_dim, theta):
    rope = {**rope, "rope_theta": theta}
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=1 << 20,
        rope_parameters=dict(rope),
    )
    expected = LlamaRotaryEmbedding(config)
    frequencies, scaling = rope_frequencies(rope, head_dim)
    assert torch.equal(frequencies, expected.inv_freq)
    assert scaling == expected.attention_scaling


@pytest.mark.parametrize(
    "rope", [{"rope_type": "dynamic"}, {"rope_type": "linear"}, YARN | {"factor": None}], ids=str
)
def test_what_makes_no_sense_is_refused(rope):
    with pytest.raises((KeyError, TypeError, ValueError)):
        rope_frequencies({"rope_theta": 1e4, **rope}, 64)
