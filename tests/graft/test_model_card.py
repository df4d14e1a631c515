"""The card beside a head and the layout of its files, from scripted figures. A few seconds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dspark.checkpoints.deepspec import write_head
from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.checkpoints.eagle3_config import Eagle3Config
from dspark.graft.head.write_head import store_shared_weights
from dspark.graft.judge.model_card import Base, card_text, write_card
from dspark.graft.judge.speedup import MEASURED
from dspark.hub.catalog.pairs import PairFiles

HIDDEN, VOCABULARY, RANK = 48, 96, 8
SHARED = ("embed_tokens.weight", "lm_head.weight")
GRAFT: dict[str, Any] = {
    "base": "tiny",
    "algorithm": "dspark",
    "data": {"prompts": ["gsm8k.jsonl"], "held_out": 32, "temperature": 0.7},
    "settings": {"learning_rate": 0.002},
    "versions": {"torch": "2.13.0"},
    "seed": 3,
    "steps": 6400,
    "answers": 4196,
    "tau_greedy": 1.8,
    "acceptance_by_position": [0.46, 0.43, 0.49, 0.46],
    "held_out_prompts": 32,
    "rounds": 1975,
}
BASE = Base("tiny", None, "abc", is_alias=False)


def _write(folder: Path, markov_type: Any = "vanilla") -> Path:
    config = DSparkConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=12,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        block_size=4,
        mask_token_id=95,
        target_layer_ids=(0, 1),
        num_target_layers=3,
        markov_type=markov_type,
        markov_rank=RANK,
        has_confidence=True,
        confidence_with_markov=True,
    )
    tensors = {
        name: torch.zeros(shape, dtype=torch.bfloat16)
        for name, shape in config.expected_tensors().items()
        if name not in SHARED
    }
    write_head(folder, config, tensors, {"graft": GRAFT})
    return folder


def test_without_a_measurement_no_speed_is_claimed(tmp_path: Path) -> None:
    text = card_text(_write(tmp_path), BASE, "unknown")
    front = yaml.safe_load(text.split("---")[1])
    assert front == {
        "base_model": "tiny",
        "library_name": "dspark",
        "license": "unknown",
        "tags": ["speculative-decoding", "draft-model", "dspark"],
    }
    for row in (
        "| answers trained on | 4,196 |",
        "| prompts | gsm8k.jsonl |",
        "| steps | 6,400 |",
        "| learning rate (not the default) | 0.002 |",
        "1.80 on 32 held-out prompts (1,975 rounds)",
        "0.46, 0.43, 0.49, 0.46",
    ):
        assert row in text, row
    assert "plain decoding" not in text and "Worth" not in text and "ECE" not in text
    assert "None" not in text


def test_the_fit_of_the_confidences_is_told_by_position(tmp_path: Path) -> None:
    head = _write(tmp_path)
    none, fit = (0.0, 1.0), (-0.25, 1.5)
    ece = {"noise": 0.01, "auc": 0.75}
    kinds = {
        kind: {
            "rounds": 1200,
            "calibration": {"shifts": [shift] * 4, "temperatures": [temperature] * 4},
            "before": [{"ece": 0.08, **ece}] * 4,
            "after": [{"ece": 0.012, **ece}] * 4,
        }
        for kind, (shift, temperature) in (("sampled", none), ("greedy", fit))
    }
    (head / "training").mkdir()
    line = {"kind": "calibration", "step": 9, **kinds}
    (head / "training" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    text = card_text(head, BASE, "mit")
    assert "| 4 | +0.00 | 1.00 | 8.0% | 1.2% | 1.0% | 0.75 | 0.75 |" in text
    assert "| 4 | -0.25 | 1.50 | 8.0% | 1.2% | 1.0% | 0.75 | 0.75 |" in text
    assert "1,200 rounds of prompts outside the fit" in text


def test_a_lean_head_says_what_deepspec_lacks(tmp_path: Path) -> None:
    head = _write(tmp_path)
    assert "--lean-head" in card_text(head, BASE, "mit")
    store_shared_weights(head, torch.ones(VOCABULARY, HIDDEN), torch.ones(VOCABULARY, HIDDEN))
    assert "--lean-head" not in card_text(head, BASE, "mit")


def test_a_torn_measurement_is_none(tmp_path: Path) -> None:
    head = _write(tmp_path)
    (head / MEASURED).write_text("{")
    assert card_text(head, BASE, "mit") == card_text(_write(tmp_path / "other"), BASE, "mit")


def test_servers_are_named_only_for_heads_that_they_know(tmp_path: Path) -> None:
    assert "vllm serve" in card_text(_write(tmp_path / "vanilla"), BASE, "mit")
    text = card_text(_write(tmp_path / "gated", "gated"), BASE, "mit")
    assert "vllm" not in text and "python eval.py" in text


def test_an_eagle3_head_has_a_card_and_a_full_head(tmp_path: Path) -> None:
    config = Eagle3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=12,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        target_layer_ids=(0, 1),
        num_target_layers=3,
        ttt_length=5,
    )
    shapes = config.expected_tensors()
    lean = {name: torch.zeros(shape) for name, shape in shapes.items() if name not in SHARED}
    write_head(tmp_path, config, lean, {"graft": GRAFT | {"algorithm": "eagle3"}})
    store_shared_weights(tmp_path, torch.ones(VOCABULARY, HIDDEN), torch.ones(VOCABULARY, HIDDEN))
    tensors = load_file(tmp_path / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    text = card_text(tmp_path, BASE, "mit")
    assert "# A Eagle3 head" not in text and "# An Eagle3 head for tiny" in text
    assert "| block | 5 tokens |" in text and "Markov" not in text and "vllm" not in text


def test_a_base_from_the_hub_is_named_with_its_revision(
    tmp_path: Path, tiny_llama_dir: Path
) -> None:
    snapshot = tmp_path / "models--Qwen--Qwen3-4B" / "snapshots" / "1a2b"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(tiny_llama_dir / "model.safetensors")
    base = Base.of(PairFiles("1a2b", snapshot, None))
    assert (base.name, base.revision, base.is_alias) == ("Qwen/Qwen3-4B", "1a2b", False)
    local = Base.of(PairFiles("tiny", tiny_llama_dir, None))
    assert local == Base("tiny", None, base.sha256, is_alias=False)
    text = card_text(_write(tmp_path / "head"), base, "mit")
    assert "| revision of the base | 1a2b |" in text
    assert "dspark chat --target Qwen/Qwen3-4B --draft HEAD" in text


def test_a_known_pair_is_used_by_its_name(tmp_path: Path, tiny_llama_dir: Path) -> None:
    base = Base.of(PairFiles("demo", tiny_llama_dir, None))
    assert "dspark chat demo --draft HEAD" in card_text(_write(tmp_path), base, "mit")


def test_the_card_is_complete_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = _write(tmp_path)
    path = write_card(head, BASE, "mit")
    before = path.read_text()

    def torn(self: Path, text: str, **_: Any) -> int:
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", torn)
    with pytest.raises(Exception, match="could not write"):
        write_card(head, BASE, "apache-2.0")
    monkeypatch.undo()
    assert path.read_text() == before
    assert not list(head.glob(".*"))


LAYER = {
    "input_layernorm.weight": (HIDDEN,),
    "post_attention_layernorm.weight": (HIDDEN,),
    "self_attn.q_proj.weight": (48, HIDDEN),
    "self_attn.k_proj.weight": (24, HIDDEN),
    "self_attn.v_proj.weight": (24, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, 48),
    "self_attn.q_norm.weight": (12,),
    "self_attn.k_norm.weight": (12,),
    "mlp.gate_proj.weight": (64, HIDDEN),
    "mlp.up_proj.weight": (64, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, 64),
}
DEEPSPEC_TENSORS = {
    "embed_tokens.weight": (VOCABULARY, HIDDEN),
    "lm_head.weight": (VOCABULARY, HIDDEN),
    "norm.weight": (HIDDEN,),
    "fc.weight": (HIDDEN, 2 * HIDDEN),
    "hidden_norm.weight": (HIDDEN,),
    **{f"layers.0.{name}": shape for name, shape in LAYER.items()},
    "markov_head.markov_w1.weight": (VOCABULARY, RANK),
    "markov_head.markov_w2.weight": (VOCABULARY, RANK),
    "confidence_head.proj.weight": (1, HIDDEN + RANK),
    "confidence_head.proj.bias": (1,),
}
# What DeepSpec asserts in its constructors, and what transformers' Qwen3 layers read.
DEEPSPEC_KEYS = {
    *("architectures", "model_type", "target_layer_ids", "mask_token_id", "num_anchors"),
    *("enable_confidence_head", "confidence_head_with_markov", "markov_rank", "markov_head_type"),
    *("block_size", "num_target_layers", "vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("rms_norm_eps", "rope_parameters", "max_position_embeddings", "attention_bias"),
    *("attention_dropout", "hidden_act", "layer_types", "sliding_window", "tie_word_embeddings"),
}


def test_a_full_head_is_what_deepspec_loads(tmp_path: Path) -> None:
    head = _write(tmp_path)
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    output_head = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    store_shared_weights(head, embedding, output_head)
    tensors = load_file(head / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == DEEPSPEC_TENSORS
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert torch.equal(tensors["embed_tokens.weight"], embedding.bfloat16())
    assert torch.equal(tensors["lm_head.weight"], output_head.bfloat16())
    config = json.loads((head / "config.json").read_text())
    assert set(config) >= DEEPSPEC_KEYS
    assert (config["architectures"], config["model_type"]) == (["Qwen3DSparkModel"], "qwen3")
    assert config["graft"] == GRAFT
