"""Tensors of a Hugging Face model directory, single file or sharded."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from dspark.errors import CheckpointError


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model; raises CheckpointError where one is missing."""
    index_path = directory / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index_path.exists():
        try:
            names = sorted(set(map(str, json.loads(index_path.read_text())["weight_map"].values())))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index_path} is not a weight index") from error
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{index_path} points outside its own folder")
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{directory} lacks {', '.join(missing[:3])}", "Fetch the model again."
        )
    return [directory / name for name in names]


def iterate_tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor with its name, one at a time."""
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (a file handle, not a dict)
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is truncated or not a safetensors file ({error})", "Fetch the model again."
            ) from error
