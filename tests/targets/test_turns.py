"""Chats that go on, are edited, cut, repeated and cancelled: each answer is a fresh forward's."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    BloomConfig,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    OpenAIGPTConfig,
    OPTConfig,
    Phi3Config,
    Qwen3NextConfig,
)

from dspark.config import EngineConfig, RuntimeConfig, SamplingConfig, StopConfig
from dspark.engine.session import open_session
from dspark.events import Event, Finished
from dspark.hub import PairFiles
from dspark.progress import follow
from tests.targets.reference import SIZES, generated, save_model

MORE = SIZES | {"max_position_embeddings": 512}
LINEAR = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**MORE),
    "window": lambda: MistralConfig(**MORE, sliding_window=24),
    "gemma3": lambda: Gemma3TextConfig(
        **MORE,
        head_dim=16,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "qwen3-next": lambda: Qwen3NextConfig(**MORE | LINEAR | {"num_hidden_layers": 4}, head_dim=16),
    "phi3": lambda: Phi3Config(
        **MORE, original_max_position_embeddings=64, rope_parameters=dict(LONG)
    ),
    "opt": lambda: OPTConfig(
        vocab_size=200,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
    ),
    "bloom": lambda: BloomConfig(vocab_size=200, hidden_size=64, n_layer=3, n_head=4),
    "openai-gpt": lambda: OpenAIGPTConfig(
        vocab_size=200, n_embd=64, n_layer=2, n_head=4, n_positions=512
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(CONFIGS[request.param](), tmp_path_factory.mktemp("turns"))


@pytest.mark.parametrize("headless", [None, "lookup"])
def test_every_turn_is_a_fresh_forwards(folder: Path, headless: str | None) -> None:
    files = PairFiles("test", folder, None, headless)
    place = RuntimeConfig("cpu", "float32")
    session = follow(open_session(files, place, EngineConfig(prefill_chunk=16)))
    draw, stop = random.Random(0), StopConfig(max_tokens=12, ignore_stop_tokens=True)
    history = [draw.randrange(3, 190) for _ in range(12)]
    for turn in range(10):
        kind = draw.choice(["extend", "extend", "edit", "same", "cancel", "shorter"])
        if kind == "edit":
            history = history[: max(3, len(history) // 2)]
        elif kind == "shorter":
            history = history[: max(3, len(history) - draw.randrange(1, 6))]
        if kind in ("edit", "extend"):
            history = [*history, *(draw.randrange(3, 190) for _ in range(draw.randrange(1, 7)))]
        cancelled_at = draw.randrange(5) if kind == "cancel" else None
        events: list[Event] = []
        for event in session.generate(history, SamplingConfig(), stop):
            if len(events) == cancelled_at:
                session.cancel()
            events.append(event)
        done = events[-1]
        assert isinstance(done, Finished)
        if kind != "cancel":
            assert done.token_ids == generated(folder, history, 12), (turn, kind)
        history = [*history, *done.token_ids][-160:]
