"""Weights that cannot be read are told from the list of files, before a byte of them comes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspark import hub
from dspark.errors import DSparkError

from .hub_server import Hub, point_to, serving
from .test_hf_download import shard

LLAMA = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1}
CONFIG = {"config.json": json.dumps(LLAMA).encode()}
REPO = "owner/model"
FORMS: dict[str, tuple[dict[str, bytes], str, str]] = {
    "pickle": (CONFIG | {"pytorch_model.bin": b"x"}, "pytorch_model.bin, which could run", "safet"),
    "pickles": (
        CONFIG
        | {"pytorch_model-00001-of-00002.bin": b"x", "pytorch_model-00002-of-00002.bin": b"y"},
        "which could run code",
        "safetensors",
    ),
    "original": (CONFIG | {"consolidated.00.pth": b"x"}, "consolidated.00.pth", "safetensors"),
    "gguf": ({"m-Q4_K_M.gguf": b"x"}, "but GGUF files", "--target MODEL.gguf"),
    "gguf and config": (CONFIG | {"m-Q4_K_M.gguf": b"x"}, "but GGUF files", "--target MODEL.gguf"),
    "gguf in parts": (
        {"Q8/m-00001-of-00002.gguf": b"x", "Q8/m-00002-of-00002.gguf": b"y"},
        "GGUF files in parts",
        "llama-gguf-split --merge",
    ),
    "onnx": (CONFIG | {"onnx/model.onnx": b"x"}, "in ONNX", "onnxruntime"),
    "tensorflow": (CONFIG | {"tf_model.h5": b"x"}, "TensorFlow", "safetensors"),
    "flax": (CONFIG | {"flax_model.msgpack": b"x"}, "Flax", "safetensors"),
    "adapter": (
        {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"},
        "adapter",
        "merge_and_unload",
    ),
    "elsewhere": (
        CONFIG | {"unet/model.safetensors": b"x"},
        "no weights in safetensors",
        "incomplete",
    ),
    "nothing": ({"README.md": b"x"}, "no config.json", "not a model"),
}
PACKINGS: dict[str, tuple[dict[str, Any], str]] = {
    "mlx": ({"quantization": {"group_size": 64, "bits": 4}}, "MLX"),
    "mlx, newer": ({"quantization_config": {"group_size": 64, "bits": 4}}, "MLX"),
    "bitsandbytes": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
    "gptq of 8 bits": ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, "bits 8"),
    "elsewhere": (
        {"model_type": "gemma3", "quantization_config": {"quant_method": "hqq", "bits": 4}},
        "'hqq'.* gemma3",
    ),
    "null": ({"quantization_config": None}, ""),
    "fp8": ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, ""),
    "mxfp4": ({"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}, ""),
}


@pytest.fixture
def server(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving({REPO: {}}) as found:
        point_to(found, monkeypatch, tmp_path / "cache")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield found


def refused(server: Hub, word: str) -> str:
    """The hint; the words match, and no file but small ones was asked for."""
    hub.register("mine", REPO, None, replace=True)
    for attempt in (
        lambda: hub.look_up(REPO),
        lambda: list(hub.fetch_missing(REPO)),
        lambda: list(hub.fetch("mine", is_forced=True)),
    ):
        with pytest.raises(DSparkError, match=word) as failure:
            attempt()
        assert "\n" not in failure.value.message + failure.value.hint
        assert "This is a bug" not in failure.value.hint
    assert set(server.files_sent()) <= {"config.json"}
    return failure.value.hint


@pytest.mark.parametrize("form", FORMS)
def test_a_form_that_is_not_read_is_named_with_the_way_out(server: Hub, form: str) -> None:
    server.repos[REPO], word, way_out = FORMS[form]
    assert way_out in refused(server, word)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_packing_that_is_not_read_is_named(server: Hub, packing: str) -> None:
    changes, word = PACKINGS[packing]
    config = json.dumps(LLAMA | changes).encode()
    server.repos[REPO] = {"config.json": config, "model.safetensors": shard(["a"], 0)}
    if word:
        refused(server, word)
    else:
        assert hub.look_up(REPO).kind == "a target without a head"
