"""The folder of a model or a head. What is asked of it is decided from config.json and the headers
of its weights alone, without torch."""

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from dspark.checkpoints.files import inside, read_json, shown
from dspark.checkpoints.gguf_codes import GPU_CODE_BYTES, conversion_of_header
from dspark.checkpoints.safetensors_file import FETCH_AGAIN, METADATA, Entry, SafetensorsFile
from dspark.checkpoints.weight_set import INDEX, is_left_over, read_weight_map, weight_names
from dspark.errors import CheckpointError

GENERATION = "generation_config.json"
DRAFT_VOCABULARY = "draft_vocabulary.safetensors"  # our addition; other programs ignore it
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


class ModelFolder:
    """A folder whose files are each opened once, when they are first asked for. Whoever reads it
    hands it on, so it must not change meanwhile; weight files stay open as long as it lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._json: dict[str, dict[str, Any]] = {}
        self._files: dict[Path, SafetensorsFile] = {}

    @classmethod
    def of(cls, folder: "Folder") -> "ModelFolder":
        return folder if isinstance(folder, ModelFolder) else cls(folder)

    @property
    def config(self) -> dict[str, Any]:
        if not (self.path / "config.json").exists():
            raise CheckpointError(
                f"{self.path} has no config.json", "Give the folder that holds the model's files."
            )
        return self.json("config.json")

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def json(self, name: str) -> dict[str, Any]:
        """Raises CheckpointError if the file is missing or no JSON object."""
        if name not in self._json:
            self._json[name] = read_json(self.path / name)
        return self._json[name]

    def file(self, path: Path) -> SafetensorsFile:
        """A weight file, its header checked. Raises CheckpointError if it is damaged."""
        if path not in self._files:
            self._files[path] = SafetensorsFile(path)
        return self._files[path]

    def files(self, prefix: str = "") -> list[SafetensorsFile]:
        """The files of its weights; with a prefix, those in which the index places tensors of
        that prefix."""
        return [self.file(path) for path in weight_files(self, prefix)]

    def entries(self, prefix: str = "") -> Iterator[tuple[SafetensorsFile, Entry]]:
        """Every tensor of the prefix."""
        for file in self.files(prefix):
            for name, entry in file.entries.items():
                if name.startswith(prefix):
                    yield file, entry

    def check_index(self, places: dict[str, str], prefix: str) -> None:
        """Raises CheckpointError if the index places a tensor elsewhere than in `places`, from its
        name to that of its file."""
        weight_map = self.weight_map
        if weight_map is None or is_left_over(weight_map, {*places.values()}):
            return
        for name, file in weight_map.items():
            if name.startswith(prefix) and places.get(name) != file:
                raise CheckpointError(
                    f"{self.path / INDEX} places {shown(name)} in {file}, which lacks it",
                    FETCH_AGAIN,
                )

    @cached_property
    def weight_map(self) -> dict[str, str] | None:
        """The index, if there is one."""
        return read_weight_map(self.path)


Folder = Path | ModelFolder


def weight_files(folder: Folder, prefix: str = "") -> list[Path]:
    """The safetensors files of a model; raises CheckpointError if one is missing.

    With a prefix, those in which the index places tensors of that prefix.
    """
    folder = ModelFolder.of(folder)
    names = weight_names(folder.path, prefix, folder.weight_map)
    files = [inside(folder.path, name) for name in names]
    missing = [path.name for path in files if not path.is_file() or path.suffix != ".safetensors"]
    if missing:
        pickles = [path.name for pattern in PICKLES for path in folder.path.glob(pattern)]
        raise CheckpointError(
            f"{folder.path} lacks {', '.join(missing[:3])}"
            + (f" and holds {pickles[0]}, which could run code" if pickles else ""),
            "Convert the weights to safetensors." if pickles else FETCH_AGAIN,
        )
    return files


def check_model_folder(path: Path) -> Path:
    """The folder itself; raises CheckpointError if a file is missing, truncated or not JSON."""
    folder = ModelFolder(path)
    _ = folder.config, folder.files()
    return path


def read_config(path: Path) -> dict[str, Any]:
    return ModelFolder(path).config


def count_parameters(folder: Folder) -> int:
    return sum(map(math.prod, read_shapes(folder).values()))


def read_shapes(folder: Folder) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor by name; of packed tensors and of codes, unpacked."""
    return {entry.name: entry.numbers_shape for _, entry in ModelFolder.of(folder).entries()}


def coded_sizes(folder: Folder) -> tuple[int, int]:
    """How many numbers are stored in the codes of a GGUF, and the bytes of those."""
    coded = [entry for _, entry in ModelFolder.of(folder).entries() if entry.codes]
    return sum(math.prod(each.numbers_shape) for each in coded), sum(e.num_bytes for e in coded)


def gpu_coded_sizes(folder: Folder) -> tuple[int, int]:
    """How many numbers of layers' matrices stay in codes on a GPU, and their bytes there."""
    values, num_bytes = 0, 0.0
    for _, entry in ModelFolder.of(folder).entries():
        is_in_layer = entry.name.endswith("_proj.weight")
        if entry.codes and entry.codes.kind in GPU_CODE_BYTES and is_in_layer:
            values += math.prod(entry.numbers_shape)
            num_bytes += math.prod(entry.numbers_shape) * GPU_CODE_BYTES[entry.codes.kind]
    return values, int(num_bytes)


def conversion_of(folder: Folder) -> int:
    """The conversion of a GGUF that wrote the folder; 0 of one from before codes."""
    files = ModelFolder.of(folder).files()
    return max(conversion_of_header({METADATA: file.metadata}) for file in files)
