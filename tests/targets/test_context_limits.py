"""How long a text may be is what config.json states, with what a scaled RoPE adds."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import (
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    Olmo3Config,
    Phi3Config,
    Qwen3Config,
)

from dspark.errors import CheckpointError, InputError
from dspark.targets.context import UNSTATED, context_limit
from tests.engine.pairs import decode, open_pair, request
from tests.targets.reference import SIZES, generated, save_model, some_tokens

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
YARN = LINEAR | {"rope_type": "yarn", "original_max_position_embeddings": 64}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def llama(length: int, rope: dict[str, Any] | None = None) -> Any:
    return LlamaConfig(**SIZES, max_position_embeddings=length, rope_parameters=rope)


def qwen3(length: int) -> Any:
    return Qwen3Config(**SIZES, max_position_embeddings=length, rope_parameters=dict(YARN))


def olmo3(length: int) -> Any:
    """Its factors hold for the layers that see everything."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    sizes = SIZES | {"max_position_embeddings": length, "sliding_window": 16}
    return Olmo3Config(**sizes, layer_types=kinds, rope_scaling=dict(YARN))


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (llama(80), 80),
        (llama(80, dict(YARN)), 256),  # as authors advise: the old length left as it was
        (llama(256, dict(YARN)), 256),
        (llama(300, dict(YARN)), 300),
        (llama(80, LINEAR | {}), 320),
        (llama(80, LINEAR | {"rope_type": "dynamic"}), 320),
        (llama(512, dict(LLAMA3)), 512),  # which is beyond its factor, and stated as such
        (Phi3Config(**SIZES, max_position_embeddings=512, rope_parameters=dict(LONG)), 4096),
        (
            Phi3Config(
                **SIZES,
                max_position_embeddings=512,
                original_max_position_embeddings=64,
                rope_parameters=dict(LONG),
            ),
            512,
        ),
        (
            Gemma3TextConfig(
                **SIZES,
                max_position_embeddings=512,
                rope_parameters={
                    "full_attention": LINEAR | {"factor": 8.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                },
            ),
            512,
        ),
        (olmo3(80), 256),
        (GPT2Config(n_positions=96), 96),
        (MptConfig(max_seq_len=70), 70),
        (BloomConfig(seq_length=90), 90),
        (BloomConfig(), UNSTATED),
        (MambaConfig(), UNSTATED),
    ],
)
def test_the_limit_that_a_config_states(config: Any, limit: int) -> None:
    assert context_limit(config) == limit


@pytest.mark.parametrize("size", ["x", -3, 1e300, [3], float("nan")])
def test_no_length_at_all_is_refused(size: Any) -> None:
    config = SimpleNamespace(max_position_embeddings=size)
    with pytest.raises(CheckpointError, match="is invalid"):
        context_limit(config)


@pytest.mark.parametrize("kind", ["qwen3", "olmo3"])
def test_a_text_longer_than_before_yarn_is_transformers_own(kind: str, tmp_path: Path) -> None:
    save_model(olmo3(80) if kind == "olmo3" else qwen3(80), tmp_path)
    engine = open_pair(tmp_path, None).engine
    prompt = some_tokens(120)
    assert decode(engine, [request(prompt, 10)]) == [generated(tmp_path, prompt, 10)]
    with pytest.raises(InputError, match="the context holds 256"):
        engine.submit(request(some_tokens(256), 1))
