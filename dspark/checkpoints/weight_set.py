"""The files of a folder that hold its weights; an earlier save may have left others."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from dspark.checkpoints.files import read_json
from dspark.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_names(directory: Path, prefix: str = "") -> list[str]:
    """Names of the files, there or not: transformers' choice, the single file before the index's.

    With a prefix, those in which the index places tensors of that prefix. Raises CheckpointError
    where two whole sets lie side by side, since the date alone would tell which is the older.
    """
    if not (directory / INDEX).exists():
        return [SINGLE]
    weight_map = read_weight_map(directory / INDEX)
    everything = set(weight_map.values())
    names = sorted({file for name, file in weight_map.items() if name.startswith(prefix)})
    if SINGLE in everything or not (directory / SINGLE).is_file():
        return names
    is_whole = bool(everything) and all((directory / name).is_file() for name in everything)
    if is_whole and directory.parent.name != "snapshots":  # of a repository, as its owner has it
        raise CheckpointError(
            f"{directory} holds two sets of weights: {SINGLE}, and {len(everything)} files that "
            f"{INDEX} names",
            "One is left from an earlier save: delete it.",
        )
    return [SINGLE]


def is_left_over(directory: Path, files: Collection[str]) -> bool:
    """Whether the index is of an earlier save, when the weights are read from these files."""
    return set(files) == {SINGLE} and SINGLE not in read_weight_map(directory / INDEX).values()


def read_weight_map(path: Path) -> dict[str, str]:
    """The index's own, from the name of a tensor to that of its file."""
    weight_map: Any = read_json(path).get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else [None]
    if not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path} is not a weight index")
    return dict(weight_map or {})
