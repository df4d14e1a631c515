"""Is this folder a model? Decided from the headers alone, without reading a tensor."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dspark.checkpoints.gguf_codes import codes_of_header, conversion_of_header
from dspark.checkpoints.weight_set import weight_names
from dspark.errors import CheckpointError

# by the end of a tensor's name, numbers per stored value: AWQ and GPTQ, MXFP4
LARGEST_HEADER = 32 << 20  # bytes
PACKED = {".qweight": 8, "_blocks": 2}


def check_model_folder(folder: Path) -> Path:
    """The folder itself; raises CheckpointError if a file is missing, truncated or not JSON."""
    read_config(folder)
    for _ in tensor_shapes(folder):
        pass
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} has no config.json", "Give the folder that holds the model's files."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return config


def count_parameters(folder: Path) -> int:
    return sum(math.prod(shape) for shape in tensor_shapes(folder))


def read_shapes(folder: Path, *names: str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor by name, in these files or in those the index names; of packed
    tensors, unpacked. From the headers, without torch and without checks."""
    names = names or tuple(weight_names(folder))
    with _header_errors(folder):
        return {
            name: shape
            for file in names
            for name, shape in _header_shapes(folder / Path(file).name)
        }


def coded_sizes(folder: Path) -> tuple[int, int]:
    """How many numbers are stored in the codes of a GGUF, and the bytes of those; from the headers,
    as read_shapes."""
    values = num_bytes = 0
    for file in weight_names(folder):
        with _header_errors(folder):
            header = _header(folder / Path(file).name)
            codes = codes_of_header(header)
            values += sum(math.prod(each.shape) for each in codes.values())
            num_bytes += sum(math.prod(header[name]["shape"]) for name in codes)
    return values, num_bytes


def conversion_of(folder: Path) -> int:
    """The conversion of a GGUF that wrote the folder; 0 of one from before codes."""
    with _header_errors(folder):
        return max(
            conversion_of_header(_header(folder / Path(f).name)) for f in weight_names(folder)
        )


@contextmanager
def _header_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"the headers of {folder} cannot be read ({error})", "Download the model again."
        ) from error


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise ValueError(f"a header of {length:,} bytes")
        return dict(json.loads(file.read(length)))


def _header_shapes(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    header = _header(path)
    codes = codes_of_header(header)
    for name, entry in header.items():
        if name in codes:
            yield name, codes[name].shape
        elif name != "__metadata__":
            *sizes, last = [int(size) for size in entry["shape"]] or [1]
            yield name, (*sizes, numbers_in(name) * last)


def numbers_in(name: str) -> int:
    """Numbers per stored value of that tensor."""
    return next((n for end, n in PACKED.items() if name.endswith(end)), 1)


def tensor_shapes(folder: Path) -> Iterator[tuple[int, ...]]:
    """The shape of every tensor in a folder's safetensors files; of packed tensors, unpacked."""
    from dspark.checkpoints.safetensors_dir import weight_files  # brings torch

    for path in weight_files(folder):
        try:
            with safe_open(path, framework="np"):  # holds sizes and offsets against the file
                pass
            yield from (shape for _, shape in _header_shapes(path))
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is truncated or not a safetensors file ({error})",
                "Download the model again.",
            ) from error
