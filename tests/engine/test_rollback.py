"""Promise 3: whatever is rolled back leaves the state that a fresh forward would have built."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    Qwen2Config,
    Qwen3NextConfig,
)

from dspark.targets.base import Target
from dspark.targets.dense import load_dense, read_config
from dspark.targets.hf import HfTarget, load_hf
from dspark.targets.load import load_target

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


def check_rollback(target: Target) -> None:
    """Refuse different numbers of rows round after round, and compare with a fresh prefill."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 60, (90,), generator=generator)
    slot, position = target.open(), 21
    with torch.inference_mode():
        target.prefill(slot, ids[:position])
        for round_index, kept in enumerate([1, 4, 2, 5, 1, 3, 5, 1]):
            wrong = torch.randint(0, 60, (5 - kept,), generator=generator)
            block = torch.cat([ids[position : position + kept], wrong])
            verified = target.verify([slot], [block])
            target.commit([slot], [kept])
            position += kept
            assert target.length(slot) == position
            fresh = target.prefill(target.open(), ids[:position])
            label = f"round {round_index}"
            kept_logits = verified.logits[kept - 1 : kept]
            torch.testing.assert_close(kept_logits, fresh.logits, atol=2e-4, rtol=2e-4, msg=label)
            torch.testing.assert_close(
                verified.taps[:kept], fresh.taps[-kept:], atol=2e-4, rtol=2e-4, msg=label
            )


@pytest.mark.parametrize(
    ("make", "rollback"),
    [(crop_target, "crop"), (sliding_target, "replay"), (linear_attention_target, "replay")],
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


def test_replay_cannot_truncate():
    target = sliding_target()
    slot = target.open()
    with torch.inference_mode():
        target.prefill(slot, torch.arange(20))
    assert not target.truncate(slot, 10)
