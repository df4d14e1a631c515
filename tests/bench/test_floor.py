"""The bytes that a pass reads, and a bandwidth that is no smaller than any read."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspark.bench.floor import Floor, bandwidth, step_bytes
from tests.engine.pairs import GOLDEN

TARGET = GOLDEN / "vanilla" / "target"


def tensors():
    found = {}
    for path in TARGET.glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_a_pass_reads_all_weights_but_an_embedding_of_its_own(dtype, size):
    values = {name: tensor.numel() for name, tensor in tensors().items()}
    looked_up = values["model.embed_tokens.weight"] if "lm_head.weight" in values else 0
    assert step_bytes(TARGET, dtype) == (sum(values.values()) - looked_up) * size


def test_an_embedding_that_is_the_output_head_too_is_read(tmp_path):
    kept = {name: tensor for name, tensor in tensors().items() if name != "lm_head.weight"}
    save_file(kept, tmp_path / "model.safetensors")
    config = json.loads((TARGET / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert step_bytes(tmp_path, "float32") == sum(each.numel() for each in kept.values()) * 4


def test_experts_have_no_floor(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"}))
    assert step_bytes(tmp_path, "float32") is None


def test_bandwidth_is_that_of_the_fastest_read():
    num_bytes = 2**22
    measured = bandwidth(num_bytes, "cpu")
    source = torch.zeros(num_bytes // 4)
    started = time.perf_counter()
    source.sum()
    assert measured > 0.01 * num_bytes / (time.perf_counter() - started)
    assert Floor(num_bytes, measured).seconds == num_bytes / measured
