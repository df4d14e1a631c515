"""A config read by ourselves is what transformers reads, wherever it is read at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from dspark.targets.context import context_limit
from dspark.targets.dense_config import DenseConfig, read_dense_config
from dspark.targets.dense_files import read_config, supports
from dspark.targets.stop_tokens import stop_tokens

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 80}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
WRITERS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=32),
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GONE = "gone"
PLAIN: list[dict[str, Any]] = [
    {},
    {"rope_theta": 5e5, "rope_parameters": GONE},
    {"rope_scaling": YARN, "rope_theta": 1e6, "rope_parameters": GONE},
    {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 7.0}},
    {"rope_parameters": LLAMA3},
    {"rope_scaling": None, "rope_parameters": None},
    {"eos_token_id": GONE},
    {"eos_token_id": None},
    {"eos_token_id": [3, 4]},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": GONE},
    {"hidden_act": GONE},
    {"quantization_config": {"quant_method": "awq", "bits": 4}},
]
LEFT: list[dict[str, Any]] = [  # to transformers
    {"hidden_act": "gelu"},
    {"partial_rotary_factor": 0.5},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    {"rope_scaling": {"type": "yarn"}},
    {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
    {"layer_types": ["full_attention", "sliding_attention"]},
    {"num_attention_heads": "4"},
    {"vocab_size": GONE},
    {"rms_norm_eps": 2.0},
    {"model_type": "gemma"},
    {"num_hidden_layers": 1 << 20},
    {"tie_word_embeddings": None},
]


def write(folder: Path, family: str, changes: dict[str, Any]) -> Path:
    raw = json.loads(WRITERS[family]().to_json_string(use_diff=False)) | changes
    kept = {key: value for key, value in raw.items() if value != GONE}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("changes", PLAIN, ids=str)
def test_what_is_read_is_what_transformers_reads(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = write(tmp_path, family, changes)
    own, theirs = read_dense_config(folder), read_config(folder)
    assert own is not None
    assert supports(theirs)
    for name in DenseConfig.__slots__:
        if name == "rope_parameters":
            stated = {k: v for k, v in own.rope_parameters.items() if k != "type"}
            assert stated == {k: v for k, v in theirs.rope_parameters.items() if k != "type"}
        elif name == "head_dim" and family == "qwen2":
            assert own.head_dim == own.hidden_size // own.num_attention_heads
        else:
            assert getattr(own, name) == getattr(theirs, name, None), name
    assert context_limit(own) == context_limit(theirs)
    assert stop_tokens(folder, own) == stop_tokens(folder, theirs)


@pytest.mark.parametrize("changes", LEFT, ids=str)
def test_what_is_odd_is_left_to_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    assert read_dense_config(write(tmp_path, "llama", changes)) is None


def test_missing_sizes_are_those_of_the_family(tmp_path: Path) -> None:
    bare = {"num_key_value_heads": GONE, "head_dim": GONE}
    own = read_dense_config(write(tmp_path, "llama", bare))
    assert own is not None
    assert (own.num_key_value_heads, own.head_dim) == (4, 16)
    for family in ("mistral", "qwen2", "qwen3"):
        assert read_dense_config(write(tmp_path, family, bare)) is None


def test_full_attention_may_be_stated_layer_by_layer(tmp_path: Path) -> None:
    stated = {"use_sliding_window": False, "layer_types": ["full_attention"] * 2}
    for family in ("llama", "qwen2", "qwen3"):
        folder = write(tmp_path, family, stated)
        assert read_dense_config(folder) is not None
        assert supports(read_config(folder))
    assert read_dense_config(write(tmp_path, "mistral", stated)) is None


def test_a_window_is_left_to_transformers(tmp_path: Path) -> None:
    for change in (4096, GONE):
        assert read_dense_config(write(tmp_path, "mistral", {"sliding_window": change})) is None
    assert read_dense_config(write(tmp_path, "qwen2", {"use_sliding_window": True})) is None
