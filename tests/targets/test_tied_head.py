"""Whether embedding and output head are one tensor is for the file to say, not for a flag."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Cohere2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from dspark.errors import CheckpointError
from dspark.targets.load import load_target
from tests.engine.pairs import decode, open_pair, request
from tests.targets.reference import SIZES, generated, save_model, some_tokens

CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
    "qwen3": lambda: Qwen3Config(**SIZES, tie_word_embeddings=False),
    "sliding": lambda: MistralConfig(**SIZES, sliding_window=16, tie_word_embeddings=False),
    "cohere2": lambda: Cohere2Config(**SIZES, tie_word_embeddings=False),
    "gpt2": lambda: GPT2Config(
        vocab_size=200, n_embd=64, n_layer=2, n_head=4, tie_word_embeddings=False
    ),
}


def say(folder: Path, **flags: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | flags))


def rewrite(folder: Path, **tensors: torch.Tensor | None) -> None:
    """By name with _ for a dot; None takes it out."""
    path = folder / "model.safetensors"
    changes = {name.replace("__", "."): value for name, value in tensors.items()}
    found = {**load_file(path), **changes}
    kept = {name: value for name, value in found.items() if value is not None}
    save_file(kept, path, metadata={"format": "pt"})


def written(folder: Path) -> tuple[int, ...]:
    return decode(open_pair(folder, None).engine, [request(some_tokens(5), 16)])[0]


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_head_of_its_own_beside_a_flag_that_ties(kind: str, tmp_path: Path) -> None:
    """As merging and tuning leave it."""
    save_model(CONFIGS[kind](), tmp_path)
    untied = written(tmp_path)
    say(tmp_path, tie_word_embeddings=True)
    assert written(tmp_path) == untied == generated(tmp_path, some_tokens(5), 16)


@pytest.mark.parametrize("kind", ["llama", "sliding"])
def test_a_head_that_equals_the_embedding_is_held_once(kind: str, tmp_path: Path) -> None:
    save_model(CONFIGS[kind](), tmp_path)
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(tmp_path, lm_head__weight=embedding.clone())
    say(tmp_path, tie_word_embeddings=True)
    both = written(tmp_path)
    target = load_target(tmp_path, tap_layers=(), device=torch.device("cpu"), dtype=torch.float32)
    head: Any = target.output_head()
    assert head.weight.data_ptr() == target.embedding().data_ptr()
    rewrite(tmp_path, lm_head__weight=None)
    assert written(tmp_path) == both == generated(tmp_path, some_tokens(5), 16)


@pytest.mark.parametrize("kind", ["llama", "sliding"])
def test_the_head_alone_stands_for_both(kind: str, tmp_path: Path) -> None:
    save_model(CONFIGS[kind](), tmp_path)
    rewrite(tmp_path, model__embed_tokens__weight=None)
    say(tmp_path, tie_word_embeddings=True)
    assert written(tmp_path) == generated(tmp_path, some_tokens(5), 16)


@pytest.mark.parametrize("kind", ["llama", "sliding"])
@pytest.mark.parametrize("name", ["lm_head__weight", "model__embed_tokens__weight"])
def test_what_is_not_tied_and_not_there_is_named(kind: str, name: str, tmp_path: Path) -> None:
    save_model(CONFIGS[kind](), tmp_path)
    rewrite(tmp_path, **{name: None})
    with pytest.raises(CheckpointError, match=name.replace("__", ".")):
        written(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "sliding"])
def test_a_tied_file_without_either_is_refused(kind: str, tmp_path: Path) -> None:
    save_model(CONFIGS[kind](), tmp_path)
    rewrite(tmp_path, lm_head__weight=None, model__embed_tokens__weight=None)
    say(tmp_path, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match="embed_tokens"):
        written(tmp_path)
