"""Tensors of a folder of safetensors files, with all headers checked before any tensor is read."""

import json
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dspark.checkpoints.files import inside, one_line, without_duplicates
from dspark.checkpoints.gguf_codes import Codes, codes_of_header
from dspark.checkpoints.weight_set import INDEX, is_left_over, read_weight_map, weight_names
from dspark.errors import CheckpointError
from dspark_kernels.cpu.stored_weight import StoredWeight, num_bytes

Shapes = dict[str, tuple[int, ...]]
LARGEST_HEADER = 32 << 20  # bytes; enough for 200,000 tensors in one file
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
FLOATS = ("F64", "F32", "F16", "BF16")
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}
KINDS = {kind: dtype for dtype, kind in DTYPES.items()} | {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U8": torch.uint8,
    "I8": torch.int8,
}
FETCH_AGAIN = "Download the model again."


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's entry in a header; dtype by safetensors' name, F32 if stored in codes."""

    dtype: str
    shape: tuple[int, ...]


def weight_files(directory: Path, prefix: str = "") -> list[Path]:
    """The safetensors files of a model; raises CheckpointError if one is missing.

    With a prefix, those in which the index places tensors of that prefix.
    """
    files = [inside(directory, name) for name in weight_names(directory, prefix)]
    missing = [path.name for path in files if not path.is_file() or path.suffix != ".safetensors"]
    if missing:
        pickles = [path.name for pattern in PICKLES for path in directory.glob(pattern)]
        raise CheckpointError(
            f"{directory} lacks {', '.join(missing[:3])}"
            + (f" and holds {pickles[0]}, which could run code" if pickles else ""),
            "Convert the weights to safetensors." if pickles else FETCH_AGAIN,
        )
    return files


def tensor_infos(directory: Path, prefix: str = "") -> dict[str, TensorInfo]:
    """Every tensor of the prefix by name, from the headers of the files that the index names."""
    files_by_name: dict[str, Path] = {}
    infos: dict[str, TensorInfo] = {}
    for path in weight_files(directory, prefix):
        for name, info in file_infos(path).items():
            if not name.startswith(prefix):
                continue
            if name in files_by_name:
                raise CheckpointError(
                    f"{shown(name)} is in {files_by_name[name].name} and in {path.name}",
                    FETCH_AGAIN,
                )
            files_by_name[name], infos[name] = path, info
    files = {path.name for path in files_by_name.values()}
    if (directory / INDEX).exists() and not is_left_over(directory, files):
        for name, file in read_weight_map(directory / INDEX).items():
            is_there = name in files_by_name and files_by_name[name].name == file
            if name.startswith(prefix) and not is_there:
                raise CheckpointError(
                    f"{directory / INDEX} places {shown(name)} in {file}, which lacks it",
                    FETCH_AGAIN,
                )
    return infos


def file_infos(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of one file by name, its sizes and offsets checked."""
    return {
        name: TensorInfo("F32", entry["codes"].shape)
        if entry["codes"]
        else TensorInfo(entry["dtype"], tuple(entry["shape"]))
        for name, entry in _entries(path).items()
    }


def _header(path: Path) -> dict[str, Any]:
    """Parses the header again, because the library accepts duplicate names."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise CheckpointError(f"{path} has a header of {length:,} bytes, which is too large")
        header = json.loads(file.read(length), object_pairs_hook=without_duplicates)
    return dict(header)


def read_file(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of one file."""
    file_infos(path)
    return {name: _tensor(name, path, entry) for name, entry in _entries(path).items()}


def iterate_tensors(
    directory: Path, prefix: str = "", names: Collection[str] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the prefix with its name, or those of `names`, one at a time.

    Each in its own memory: files do not stay mapped, which would count as memory in use.
    """
    stored = StoredTensors(directory, prefix, names)
    for name in [*stored]:
        yield name, stored[name]


class StoredTensors(MutableMapping[str, torch.Tensor]):
    """As iterate_tensors, but each tensor is read on access; deleting only drops the name."""

    def __init__(
        self,
        directory: Path,
        prefix: str = "",
        names: Collection[str] | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        """In that device and dtype, or as stored; under the names of `renamed`."""
        self._device, self._dtype = device, dtype
        renamed = renamed or {}
        self._places: dict[str, tuple[Path, Mapping[str, Any]]] = {}
        for path in weight_files(directory, prefix):
            for name, entry in _entries(path).items():
                if name.startswith(prefix) and (names is None or name in names):
                    self._places[renamed.get(name, name)] = path, entry

    def __getitem__(self, name: str) -> torch.Tensor:
        path, entry = self._places[name]
        tensor = _tensor(entry["name"], path, entry)
        return tensor.to(device=self._device, dtype=self._dtype)

    def kind(self, name: str) -> str | None:
        """The format of its codes; None where it is stored as numbers."""
        codes: Codes | None = self._places[name][1]["codes"]
        return codes and codes.kind

    def in_codes(self, name: str) -> StoredWeight | None:
        """As stored, for a tensor in codes."""
        path, entry = self._places[name]
        return _in_codes(entry["name"], path, entry) if entry["codes"] else None

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        raise TypeError("files are only read")

    def __delitem__(self, name: str) -> None:
        del self._places[name]

    def __contains__(self, name: object) -> bool:
        return name in self._places  # checked without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def has_codes(directory: Path) -> bool:
    """Whether weights of the folder are stored in the codes of a GGUF."""
    files = weight_files(directory)
    return any(entry["codes"] for path in files for entry in _entries(path).values())


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """Every tensor's entry in the header, with `data_offsets` from the beginning of the file, and
    its `codes`, or None."""
    with _opened(path) as file:
        names = list(file.keys())
        header = _header(path)
        codes = codes_of_header(header)
        for name, each in codes.items():
            _check_codes(header[name], each)
    with path.open("rb") as raw:
        first = 8 + int.from_bytes(raw.read(8), "little")
    return {
        name: {
            "name": name,
            "dtype": header[name]["dtype"],
            "shape": header[name]["shape"],
            "data_offsets": [first + at for at in header[name]["data_offsets"]],
            "codes": codes.get(name),
        }
        for name in names
    }


def _check_codes(entry: Mapping[str, Any], codes: Codes) -> None:
    size = num_bytes(codes.kind, *codes.shape)
    if entry["dtype"] != "U8" or entry["shape"] != [size]:
        raise ValueError(f"codes of {list(codes.shape)} in {codes.kind} are {size} bytes")


def _in_codes(name: str, path: Path, entry: Mapping[str, Any]) -> StoredWeight:
    codes: Codes = entry["codes"]
    return StoredWeight(codes.kind, *codes.shape, _numbers(name, path, entry))


def _tensor(name: str, path: Path, entry: Mapping[str, Any]) -> torch.Tensor:
    if entry["codes"]:
        return _in_codes(name, path, entry).dequantized()
    return _numbers(name, path, entry)


def _numbers(name: str, path: Path, entry: Mapping[str, Any]) -> torch.Tensor:
    dtype = KINDS.get(entry["dtype"])
    if dtype is None:  # several numbers per byte, for example: left to the library
        with _opened(path) as whole:
            packed: torch.Tensor = whole.get_tensor(name)
            return packed.clone()
    tensor = torch.empty(entry["shape"], dtype=dtype)
    rest = tensor.view(-1).view(torch.uint8).numpy().data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(entry["data_offsets"][0])
            while len(rest):
                if not (num_read := file.readinto(rest)):
                    raise CheckpointError(f"{path} is truncated at {shown(name)}", FETCH_AGAIN)
                rest = rest[num_read:]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({one_line(error)})", FETCH_AGAIN) from error
    return tensor


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", FETCH_AGAIN) from error
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({one_line(error)})", FETCH_AGAIN
        ) from error


def check_tensors(
    found: Mapping[str, TensorInfo], expected: Shapes, optional: Collection[str], what: str
) -> None:
    """Raises CheckpointError naming tensors that are missing, unexpected, of another shape or not
    numeric."""
    missing = [name for name in expected if name not in found and name not in optional]
    surplus = [name for name in found if name not in expected]
    misshapen = [
        f"{name} is {list(info.shape)} instead of {list(expected[name])}"
        for name, info in found.items()
        if name in expected and info.shape != expected[name]
    ]
    types = [f"{name} is {i.dtype}" for name, i in found.items() if i.dtype not in FLOATS]
    for kind, names in (
        ("lacks", missing),
        ("has the unexpected", surplus),
        ("is wrong:", misshapen),
        ("is not in plain floating point:", types),
    ):
        if names:
            raise CheckpointError(
                f"{what} {kind} {', '.join(map(shown, names[:4]))}{' ...' * (len(names) > 4)}",
                "config.json and the weights do not belong together.",
            )


def infos_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorInfo]:
    """Header entries of tensors that are about to be written."""
    return {name: TensorInfo(DTYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}


def shown(name: str) -> str:
    """A name from a file, escaped and shortened for one line."""
    return " ".join(name.split())[:160]
