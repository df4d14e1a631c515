"""The files of a folder that hold its weights; an earlier save may have left others."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dspark.checkpoints.files import read_json
from dspark.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_names(directory: Path, prefix: str, weight_map: Mapping[str, str] | None) -> list[str]:
    """Names of the files, there or not: transformers' choice, the single file before the index's;
    `weight_map` is the index's, if there is one.

    With a prefix, those in which the index places tensors of that prefix. Raises CheckpointError
    where two whole sets lie side by side, since the date alone would tell which is the older.
    """
    if weight_map is None:
        return [SINGLE]
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


def is_left_over(weight_map: Mapping[str, str], files: Collection[str]) -> bool:
    """Whether the index is of an earlier save, when the weights are read from these files."""
    return set(files) == {SINGLE} and SINGLE not in weight_map.values()


def read_weight_map(directory: Path) -> dict[str, str] | None:
    """The index's own, from the name of a tensor to that of its file; None without an index."""
    path = directory / INDEX
    if not path.exists():
        return None
    weight_map: Any = read_json(path).get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else [None]
    if not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path} is not a weight index")
    return dict(weight_map or {})
