"""gpt-oss as it is published: experts in MXFP4, from a writer of the test's own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, GptOssForCausalLM

from dspark.targets.load import load_target
from tests.engine.rollback import check_rollback
from tests.moe_toy import mxfp4

PLACE = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    config = GptOssConfig(
        vocab_size=80,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=10,
        max_position_embeddings=256,
        initializer_range=0.2,
        pad_token_id=None,
        eos_token_id=None,
    )
    model = GptOssForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("mxfp4")
    model.save_pretrained(path / "float")
    model.save_pretrained(path / "packed")
    file = path / "float" / "model.safetensors"
    tensors, packed = load_file(file), {}
    for name, value in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            blocks, scales, tensors[name] = mxfp4(value)
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        else:
            packed[name] = tensors[name] = value.bfloat16().float()  # what is not packed is bf16
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})
    save_file(packed, path / "packed" / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((path / "packed" / "config.json").read_text())
    raw["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
    }
    (path / "packed" / "config.json").write_text(json.dumps(raw))
    return path


def test_experts_are_unpacked(folder: Path) -> None:
    whole = GptOssForCausalLM.from_pretrained(folder / "float", dtype=torch.float32).eval()
    target = load_target(folder / "packed", tap_layers=(1,), **PLACE)
    assert target.dtype == torch.float32
    ids = torch.randint(0, 80, (30,))
    with torch.inference_mode():
        wanted = whole(input_ids=ids[None]).logits[0]
        found = target.verify([target.open()], [ids]).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_it_rolls_back(folder: Path) -> None:
    check_rollback(load_target(folder / "packed", tap_layers=(0, 1), **PLACE))
