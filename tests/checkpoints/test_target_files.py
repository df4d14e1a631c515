"""Targets are read strictly too."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspark.checkpoints.model_folder import weight_files
from dspark.checkpoints.safetensors_dir import iterate_tensors
from dspark.errors import CheckpointError
from dspark.targets.load import load_target

PLACE = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture
def target_dir(tiny_qwen3_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_qwen3_dir, tmp_path / "target"))


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_target(folder, tap_layers=(), **PLACE)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_missing_and_surplus_tensors_are_named(target_dir):
    path = target_dir / "model.safetensors"
    whole = load_file(path)
    name = "model.layers.1.mlp.down_proj.weight"
    save_file({n: t for n, t in whole.items() if n != name}, path, metadata={"format": "pt"})
    assert name in refused(target_dir)
    save_file(whole | {"model.odd": torch.ones(1)}, path, metadata={"format": "pt"})
    assert "model.odd" in refused(target_dir)


@pytest.mark.parametrize("size", [0, 7, 1000])
def test_truncated_weights_are_refused(target_dir, size):
    path = target_dir / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "model.safetensors" in refused(target_dir)


def test_missing_files_are_refused(target_dir):
    (target_dir / "model.safetensors").unlink()
    refused(target_dir)
    (target_dir / "config.json").unlink()
    refused(target_dir)


@pytest.mark.parametrize(
    "content", ["{", '{"model_type": "nobody-knows-this"}', '{"weights": 1}', ""]
)
def test_config_of_no_known_model_is_refused(target_dir, content):
    (target_dir / "config.json").write_text(content)
    refused(target_dir)


def shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number}-of-2.safetensors"
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_sharded_files_are_the_same_model(target_dir, tiny_qwen3_dir):
    shard(target_dir)
    whole, parts = dict(iterate_tensors(tiny_qwen3_dir)), dict(iterate_tensors(target_dir))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_index_may_not_leave_its_folder(target_dir):
    shard(target_dir)
    index = target_dir / "model.safetensors.index.json"
    for elsewhere in ("../secret.safetensors", "/etc/passwd"):
        index.write_text(json.dumps({"weight_map": {"a": elsewhere}}))
        with pytest.raises(CheckpointError, match="outside"):
            weight_files(target_dir)
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"gone\.safetensors"):
        weight_files(target_dir)
    index.write_text("[]")
    with pytest.raises(CheckpointError):
        weight_files(target_dir)
