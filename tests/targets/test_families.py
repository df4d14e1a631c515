"""A tiny random model of every family, out of a folder as its checkpoints are laid out.

Against transformers' own forward of the whole model, which for a multimodal one has its towers too.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    Gemma4Config,
    Gemma4TextConfig,
    Gemma4UnifiedConfig,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    Mistral3Config,
    MistralConfig,
    Qwen2Config,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from dspark.targets.base import Rollback
from dspark.targets.dense import DenseTarget
from dspark.targets.load import load_target
from tests.engine.pairs import decode, open_pair, request
from tests.engine.rollback import check_rollback

PLACE = {"device": torch.device("cpu"), "dtype": torch.float32}
SIZES: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_TOWER = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
WINDOWS = ["sliding_attention", "full_attention"] * 2
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "initializer_range": 0.15,  # at twice that, states grow to where float32 is coarse
}
GEMMA4 = {
    **SIZES,
    "pad_token_id": 0,
    "sliding_window": 10,
    "layer_types": WINDOWS,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "final_logit_softcapping": 3.0,
}
# as in the small ones: two layers read the keys of earlier ones, each layer has its own embedding
GEMMA4_SMALL = GEMMA4 | {
    "attention_k_eq_v": False,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 80,
}


@dataclass(frozen=True, slots=True)
class Family:
    config: Callable[[], Any]
    rollback: Rollback
    is_dense: bool = False


FAMILIES = {
    "llama": Family(lambda: LlamaConfig(**SIZES), "crop", is_dense=True),
    "qwen2": Family(lambda: Qwen2Config(**SIZES), "crop", is_dense=True),
    "qwen3": Family(lambda: Qwen3Config(**SIZES), "crop", is_dense=True),
    "mistral": Family(lambda: MistralConfig(**SIZES, sliding_window=None), "crop", is_dense=True),
    "mistral-sliding": Family(lambda: MistralConfig(**SIZES, sliding_window=10), "crop"),
    "mistral3": Family(
        lambda: Mistral3Config(
            text_config={"model_type": "mistral", **SIZES, "sliding_window": None},
            vision_config={"model_type": "pixtral", **TOWER, "head_dim": 8},
        ),
        "crop",
    ),
    "gemma2": Family(
        lambda: Gemma2Config(
            **SIZES, sliding_window=10, query_pre_attn_scalar=8, final_logit_softcapping=3.0
        ),
        "crop",
    ),
    "gemma3": Family(lambda: Gemma3TextConfig(**SIZES, sliding_window=10), "crop"),
    "gemma3-vision": Family(
        lambda: Gemma3Config(
            text_config={**SIZES, "sliding_window": 10, "layer_types": WINDOWS},
            vision_config=TOWER,
            mm_tokens_per_image=4,
        ),
        "crop",
    ),
    "gemma4": Family(
        lambda: Gemma4Config(
            text_config=GEMMA4,
            vision_config={**TOWER, "num_key_value_heads": 2, "head_dim": 8},
            audio_config=None,
        ),
        "crop",
    ),
    "gemma4-unified": Family(lambda: Gemma4UnifiedConfig(text_config=GEMMA4), "crop"),
    "gemma4-small": Family(lambda: Gemma4TextConfig(**GEMMA4_SMALL), "crop"),
    "gemma4-experts": Family(
        lambda: Gemma4TextConfig(
            **GEMMA4,
            enable_moe_block=True,
            num_experts=4,
            top_k_experts=2,
            moe_intermediate_size=16,
        ),
        "crop",
    ),
    "qwen3-moe": Family(lambda: Qwen3MoeConfig(**SIZES, **EXPERTS), "crop"),
    "qwen3-next": Family(
        lambda: Qwen3NextConfig(
            **SIZES | LINEAR | EXPERTS | {"shared_expert_intermediate_size": 16}
        ),
        "replay",
    ),
    "qwen3.5": Family(
        lambda: Qwen3_5Config(text_config=SIZES | LINEAR, vision_config=QWEN_TOWER), "replay"
    ),
    "qwen3.5-moe": Family(
        lambda: Qwen3_5MoeConfig(
            text_config=SIZES | LINEAR | EXPERTS | {"shared_expert_intermediate_size": 16},
            vision_config=QWEN_TOWER,
        ),
        "replay",
    ),
    "lfm2": Family(
        lambda: Lfm2Config(**SIZES, layer_types=["conv", "full_attention"] * 2), "replay"
    ),
    "gpt-oss": Family(
        lambda: GptOssConfig(
            **SIZES, num_local_experts=4, num_experts_per_tok=2, sliding_window=10
        ),
        "crop",
    ),
}


def auto_class(config: Any) -> Any:
    has_towers = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if has_towers else AutoModelForCausalLM


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    config = FAMILIES[family].config()
    model = auto_class(config).from_config(config, dtype=torch.float32)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if "norm" in name or "layer_scalar" in name or "sinks" in name:
            value.data.add_(
                torch.empty_like(value).uniform_(-0.4, 0.4)
            )  # so that none of them can be left out unseen
    path = tmp_path_factory.mktemp("family")
    model.save_pretrained(path)
    return path


def test_it_computes_what_the_whole_model_does(family: str, folder: Path) -> None:
    ids = torch.randint(0, 80, (30,), generator=torch.Generator().manual_seed(1))
    config = FAMILIES[family].config()
    whole = auto_class(config).from_pretrained(folder, dtype=torch.float32).eval()
    taps = (-1, 0, 1, 2)
    target = load_target(folder, tap_layers=taps, **PLACE)
    assert isinstance(target, DenseTarget) == FAMILIES[family].is_dense
    assert target.spec.rollback == FAMILIES[family].rollback
    with torch.inference_mode():
        wanted = whole(input_ids=ids[None], output_hidden_states=True)
        slot = target.open()
        passes = [target.prefill(slot, ids[:17]), target.verify([slot], [ids[17:]])]
    states = torch.cat([wanted.hidden_states[tap + 1][0] for tap in taps], dim=-1)
    ours = torch.cat([each.taps for each in passes])
    torch.testing.assert_close(ours, states, atol=1e-4, rtol=1e-4)
    logits = torch.cat([each.logits for each in passes])
    torch.testing.assert_close(logits, wanted.logits[0, 16:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(target.embedding()[ids], ours[:, : target.spec.hidden_size])


def test_rollback_leaves_what_a_fresh_forward_would(folder: Path) -> None:
    check_rollback(load_target(folder, tap_layers=(0, 2), **PLACE))


def test_a_head_changes_nothing(folder: Path, make_tiny_head: Callable[[Path], Path]) -> None:
    session = open_pair(folder, make_tiny_head(folder))
    ask = request(range(20, 50), 40)
    assert decode(session.engine, [ask]) == decode(session.engine, [replace(ask, plain=True)])
