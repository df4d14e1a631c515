"""Promise 3: whatever is rolled back leaves the state that a fresh forward would have built."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    Qwen2Config,
    Qwen3NextConfig,
)

from dspark.targets.dense_files import load_dense, read_config
from dspark.targets.hf import HfTarget, load_hf
from dspark.targets.load import load_target
from tests.engine.rollback import check_rollback

PLACE = {"device": torch.device("cpu"), "dtype": torch.float32}
SIZES = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}


def hf_target(config) -> HfTarget:
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return HfTarget(model, tap_layers=(0, 1))


def sliding_target() -> HfTarget:
    return hf_target(MistralConfig(**SIZES, sliding_window=12))


def linear_attention_target() -> HfTarget:
    config = Qwen3NextConfig(
        **SIZES,
        head_dim=16,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    )
    return hf_target(config)


def crop_target() -> HfTarget:
    return hf_target(Qwen2Config(**SIZES))


@pytest.mark.parametrize(
    ("make", "rollback"),
    [(crop_target, "crop"), (sliding_target, "crop"), (linear_attention_target, "replay")],
)
def test_transformers_targets_roll_back_by_kind(make, rollback):
    target = make()
    assert target.spec.rollback == rollback
    check_rollback(target)


@pytest.mark.parametrize("model", ["tiny_llama_dir", "tiny_qwen3_dir"])
def test_dense_targets_roll_back(model, request: pytest.FixtureRequest):
    folder = request.getfixturevalue(model)
    check_rollback(load_dense(folder, read_config(folder), tap_layers=(0, 1), **PLACE))


def test_truncated_request_equals_a_fresh_one(tiny_llama_dir):
    ids = torch.arange(5, 65)
    for load in (load_target, hf_loaded):
        target = load(tiny_llama_dir, tap_layers=(), **PLACE)
        slot = target.open()
        with torch.inference_mode():
            target.prefill(slot, ids)
            assert target.truncate(slot, 30)
            resumed = target.prefill(slot, ids[30:40] + 1).logits
            fresh = target.prefill(target.open(), torch.cat([ids[:30], ids[30:40] + 1])).logits
        torch.testing.assert_close(resumed, fresh, atol=1e-4, rtol=1e-4)


def hf_loaded(folder, **kwargs):
    return load_hf(folder, stop_token_ids=frozenset(), **kwargs)


@pytest.mark.parametrize("make", [sliding_target, linear_attention_target])
def test_what_is_forgotten_cannot_be_truncated_to(make):
    target = make()
    slot = target.open()
    with torch.inference_mode():
        target.prefill(slot, torch.arange(20))
    assert not target.truncate(slot, 10)
