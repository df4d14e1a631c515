"""Wherever the weights of layers wait, what comes out is the same, and they wait there."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from dspark.models.decoder import FusedLayer
from dspark.models.placement import InHostMemory, OnDemand, OnDevice, Placement
from dspark.targets.dense import DenseTarget
from dspark.targets.dense_files import load_dense, read_config
from tests.targets.test_packed import write as write_quantized

SIZES: dict[str, Any] = {
    "vocab_size": 70,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.3,
}
MODELS = {"biases": Qwen2Config, "head norms": Qwen3Config}
PLACEMENTS = {"host": InHostMemory, "on demand": OnDemand}


def load(folder: Path, placement: Placement) -> DenseTarget:
    place = {"device": torch.device("cpu"), "dtype": torch.float32}
    return load_dense(
        folder, read_config(folder), tap_layers=(-1, 1), prepack=False, placement=placement, **place
    )


@pytest.fixture(params=MODELS)
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(MODELS[request.param](**SIZES), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    return tmp_path


def check_same(one: DenseTarget, other: DenseTarget) -> None:
    """A chunk of a prompt and a block behind it."""
    passes = []
    for target in (one, other):
        slot = target.open()
        with torch.inference_mode():
            prompt = target.prefill(slot, torch.arange(20))
            block = target.verify([slot], [torch.tensor([3, 1, 4, 1, 5])])
        passes.append((prompt.logits, prompt.taps, block.logits, block.taps))
    assert all(torch.equal(a, b) for a, b in zip(*passes, strict=True))


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_pass_is_the_same_wherever_weights_wait(folder: Path, name: str) -> None:
    check_same(load(folder, OnDevice()), load(folder, PLACEMENTS[name]()))


@pytest.mark.parametrize("quantization", ["awq", "gptq by activation", "fp8"])
def test_quantized_weights_wait_as_they_are(tmp_path: Path, quantization: str) -> None:
    """Codes, scales, zeros and the order of columns all come along."""
    write_quantized(tmp_path, "qwen3", quantization)
    check_same(load(tmp_path, OnDevice()), load(tmp_path, InHostMemory()))


@pytest.mark.parametrize("name", PLACEMENTS)
def test_one_layer_at_a_time_is_on_the_device(folder: Path, name: str) -> None:
    """What a layer's run brought is gone when the next but one comes."""
    target = load(folder, PLACEMENTS[name]())
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    for layer in target.decoder.layers:
        most = max(most, sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(layer.down.weight))
    assert len(alive) == 3 and most <= 1
    del layer
    assert not any(ref() is not None for ref in alive)


def test_bytes_come_from_the_host_at_each_run(folder: Path) -> None:
    """Not from a copy that stayed behind: what is changed where they wait is seen."""
    target, ids = load(folder, InHostMemory()), torch.arange(9)
    waiting: list[FusedLayer] = target.decoder.layers._waiting  # type: ignore[attr-defined]
    with torch.inference_mode():
        before = target.prefill(target.open(), ids).logits
        waiting[2].down.weight.zero_()
        after = target.prefill(target.open(), ids).logits
    assert not torch.equal(before, after)


def test_what_is_missing_is_named_before_anything_runs(folder: Path) -> None:
    """A layer that is built on demand would else fail in the middle of an answer."""
    from safetensors.torch import load_file, save_file

    from dspark.errors import CheckpointError

    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    for placement in (OnDevice(), InHostMemory(), OnDemand()):
        with pytest.raises(CheckpointError, match=r"lacks model\.layers\.2\.mlp\.up_proj\.weight"):
            load(folder, placement)
