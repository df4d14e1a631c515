"""A DFlash 2 head in its authors' files and in those of speculators is the same head."""

import json
from pathlib import Path

import pytest
import torch

from dspark.checkpoints.convert import convert_head
from dspark.checkpoints.detect import Packaging
from dspark.checkpoints.dflash2_config import DFlash2Config
from dspark.checkpoints.heads import check_published, find_head, read_draft
from dspark.errors import CheckpointError, DSparkError
from tests.checkpoints import writers
from tests.checkpoints.test_packagings import change, refused, rounds
from tests.engine.pairs import GOLDEN

TARGET, HEAD = GOLDEN / "dflash2" / "target", GOLDEN / "dflash2" / "draft"
SCALES = ("input_embedding_scale", "output_multiplier", "final_logit_softcapping")


def plain(folder: Path, **changes) -> Path:
    """The golden head without scales and cap, which speculators does not have."""
    raw, tensors = writers.golden_head("dflash2")
    nested = {k: v for k, v in raw["dflash_config"].items() if k not in SCALES}
    return writers._put(folder, raw | {"dflash_config": nested | changes}, tensors)


def test_published_files_are_read(tmp_path):
    """Keys and names as the authors' fixture has them: two codebooks without a suffix."""
    config, tensors = read_draft(HEAD)
    assert isinstance(config, DFlash2Config) and find_head(HEAD).packaging is Packaging.DFLASH
    assert (config.block_size, config.block_rows, config.sliding_window) == (7, 8, 24)
    assert (config.selector_top_k, config.selector_rank, config.conv_group_size) == (6, 8, 16)
    assert (config.output_multiplier, config.input_embedding_scale) == (0.75, 1.5)
    assert config.final_logit_softcapping == 20.0 and not config.sample_from_anchor
    assert len(tensors) == 3 + 2 * (11 + 4) + 3
    assert check_published(json.loads((HEAD / "config.json").read_text()), "z-lab/x") == "DFlash"


def test_the_config_of_the_muse_head_is_accepted():
    """Its keys, from the authors' test fixture."""
    layers = ["sliding_attention"] * 5
    raw = {
        "architectures": ["DFlash2DraftModel"],
        "attention_bias": False,
        "is_causal": False,
        "dflash_config": {
            "block_size": 16,
            "conv_group_size": 16,
            "conv_kernel_size": 2,
            "final_logit_softcapping": 20.0,
            "mask_token_id": 201818,
            "output_multiplier": 0.19611613513818404,
            "selector_rank": 256,
            "selector_top_k": 16,
            "target_layer_ids": [1, 13, 25, 37, 49],
        },
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 6656,
        "intermediate_size": 19968,
        "layer_types": layers,
        "max_position_embeddings": 131072,
        "model_type": "qwen3",
        "num_attention_heads": 32,
        "num_hidden_layers": 5,
        "num_key_value_heads": 8,
        "num_target_layers": 52,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
        "sliding_window": 2048,
        "use_sliding_window": True,
        "vocab_size": 202048,
    }
    assert check_published(raw, "muse") is Packaging.DFLASH
    config = DFlash2Config.from_json(raw)
    shapes = config.expected_tensors()
    bytes_of = {n: 2 * torch.Size(s).numel() for n, s in shapes.items()}
    own = {n: b for n, b in bytes_of.items() if n not in writers.SHARED}
    assert (len(own), sum(own.values())) == (81, 5_544_319_488)  # the published payload
    assert (config.rope_theta, config.block_size, config.sliding_window) == (5e5, 15, 2048)
    assert DFlash2Config.from_json(config.to_json()) == config


def test_there_and_back_again(tmp_path):
    source, there, back = plain(tmp_path / "source"), tmp_path / "there", tmp_path / "back"
    assert convert_head(source, there, "speculators").dropped == tuple(
        f"{name} (the target's is used)" for name in writers.SHARED
    )
    raw = json.loads((there / "config.json").read_text())
    assert raw["aux_hidden_state_layer_ids"] == [1, 2, 3] and raw["sample_from_anchor"] is False
    assert raw["sliding_window_non_causal"] and "dflash_config" not in raw
    convert_head(there, back, "dflash")
    before, after = read_draft(source), read_draft(back)
    assert find_head(there).config.num_target_layers is None  # not a key of speculators
    assert after[0].to_json() | {"num_target_layers": 4} == before[0].to_json()
    assert before[1].keys() == after[1].keys()
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    assert rounds(TARGET, source) == rounds(TARGET, there) == rounds(TARGET, back)


@pytest.mark.parametrize("layout", ["speculators", "deepspec"])
def test_what_a_layout_cannot_say_is_not_written(layout, tmp_path):
    with pytest.raises(DSparkError, match=r"scaled|soft-capped|DeepSpec"):
        convert_head(HEAD, tmp_path / "out", layout)
    with pytest.raises(CheckpointError, match="DSpark heads"):
        convert_head(GOLDEN / "vanilla" / "draft", tmp_path / "out", "dflash")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("is_causal", True, "a causal block"),
        ("is_causal", None, "a causal block"),  # engines take a window for a causal block
        ("layer_types", ["full_attention", "sliding_attention"], "with and without"),
        ("attention_sink_bias", True, "sinks"),
        ("sample_from_anchor", True, "an anchor that drafts"),
        ("sliding_window", 7, "shorter than the block"),
        ("num_hidden_layers", 3, "layers.2"),
        ("vocab_size", 66, "66"),
    ],
)
def test_what_is_not_built_or_does_not_agree_is_refused(key, value, words, tmp_path):
    assert words in refused(change(plain(tmp_path / "head"), **{key: value})).message


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("conv_group_size", 5, "conv_group_size"),
        ("conv_kernel_size", 9, "conv_kernel_size"),
        ("selector_top_k", 66, "selector_top_k"),
        ("selector_rank", 7, "candidate_selector"),
        ("conv_kernel_size", 3, "base_kernel"),
    ],
)
def test_sizes_of_the_method_are_checked(key, value, words, tmp_path):
    assert words in refused(plain(tmp_path / "head", **{key: value})).message
