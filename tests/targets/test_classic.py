"""Models that keep layers, positions or what is cached in their own way, and those with a state.

Right without a head, or refused by name; the sweep has all the others.
"""

from pathlib import Path

import pytest
from transformers import OPTConfig

from dspark.errors import CheckpointError
from dspark.targets.hf import HfTarget
from dspark.targets.load import load_target
from tests.targets.reference import decoded, save_model
from tests.targets.sweep import PLACE, outcome
from tests.targets.tiny_configs import tiny_config

LEARNED_POSITIONS = ("gpt2", "gpt_neo", "gpt_bigcode", "opt", "biogpt", "xglm")
ALIBI, ROTARY = ("bloom", "mpt"), ("gptj", "gpt_neox", "codegen", "falcon")
STATES = ("mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "zamba2", "rwkv")
CACHE_NOTHING = ("openai-gpt",)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", (*LEARNED_POSITIONS, *ALIBI, *ROTARY, *STATES, *CACHE_NOTHING))
def test_it_is_right_without_a_head(kind: str, tmp_path: Path) -> None:
    assert outcome(kind, tmp_path) == ("equal", "")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["recurrent_gemma", "minimax", "xlnet", "cpmant", "moshi"])
def test_what_cannot_be_taken_back_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    became, why = outcome(kind, tmp_path)
    assert became == "refused"
    assert f"of type {kind} cannot be decoded" in why


def test_a_head_is_refused_where_layers_cannot_be_tapped(tmp_path: Path) -> None:
    config = OPTConfig(
        vocab_size=200,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    save_model(config, tmp_path)
    with pytest.raises(CheckpointError, match="OPTForCausalLM cannot be tapped") as caught:
        load_target(tmp_path, tap_layers=(0,), **PLACE)
    assert "--draft none" in caught.value.hint


def test_rows_behind_a_state_that_begins_anew_go_one_by_one(tmp_path: Path) -> None:
    """And a prompt is one pass: in chunks it would be as many as it has tokens."""
    save_model(tiny_config("mamba"), tmp_path)
    target = load_target(tmp_path, tap_layers=(), **PLACE)
    assert isinstance(target, HfTarget) and not target.spec.chunks_prompts
    passes: list[int] = []
    target.model.register_forward_pre_hook(
        lambda _module, _args, given: passes.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    decoded(target, list(range(3, 20)), 3, chunk=4)
    assert passes == [17, 1, 1, 1]
