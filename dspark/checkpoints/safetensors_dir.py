"""Tensors of a folder of safetensors files, with all headers checked before any tensor is read."""

import warnings
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dspark.checkpoints.files import shown
from dspark.checkpoints.model_folder import Folder, ModelFolder
from dspark.checkpoints.safetensors_file import FETCH_AGAIN, Entry, SafetensorsFile
from dspark.errors import CheckpointError
from dspark_kernels.cpu.stored_weight import StoredWeight, num_bytes
from dspark_kernels.repacked_weight import from_gguf

Shapes = dict[str, tuple[int, ...]]
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
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F4": torch.float4_e2m1fn_x2,
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "C64": torch.complex64,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's entry in a header; dtype by safetensors' name, F32 if stored in codes."""

    dtype: str
    shape: tuple[int, ...]


def tensor_infos(folder: Folder, prefix: str = "") -> dict[str, TensorInfo]:
    """Every tensor of the prefix by name, from the headers of the files that the index names."""
    folder = ModelFolder.of(folder)
    files: dict[str, str] = {}
    infos: dict[str, TensorInfo] = {}
    for file, entry in _entries(folder, prefix):
        if entry.name in files:
            raise CheckpointError(
                f"{shown(entry.name)} is in {files[entry.name]} and in {file.path.name}",
                FETCH_AGAIN,
            )
        files[entry.name], infos[entry.name] = file.path.name, _info(entry)
    folder.check_index(files, prefix)
    return infos


def _info(entry: Entry) -> TensorInfo:
    if entry.codes:
        return TensorInfo("F32", entry.codes.shape)
    return TensorInfo(entry.dtype, entry.shape)


def _entries(folder: ModelFolder, prefix: str = "") -> Iterator[tuple[SafetensorsFile, Entry]]:
    for file, entry in folder.entries(prefix):
        _check_codes(file.path, entry)
        yield file, entry


def _check_codes(path: Path, entry: Entry) -> None:
    try:
        size = num_bytes(entry.codes.kind, *entry.codes.shape) if entry.codes else None
    except ValueError as error:
        raise CheckpointError(f"{path} holds {shown(entry.name)}: {error}", FETCH_AGAIN) from error
    if size is not None and (entry.dtype != "U8" or entry.shape != (size,)):
        raise CheckpointError(f"{path} holds {shown(entry.name)} in codes of another size")


def read_file(folder: Folder, name: str) -> dict[str, torch.Tensor]:
    """All tensors of one file of the folder."""
    folder = ModelFolder.of(folder)
    file = folder.file(folder.path / name)
    return {name: _tensor(file, entry) for name, entry in file.entries.items()}


def iterate_tensors(
    folder: Folder, prefix: str = "", names: Collection[str] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the prefix with its name, or those of `names`, one at a time.

    Each in its own memory: files do not stay mapped, which would count as memory in use.
    """
    stored = StoredTensors(folder, prefix, names)
    for name in [*stored]:
        yield name, stored[name]


class StoredTensors(MutableMapping[str, torch.Tensor]):
    """As iterate_tensors, but each tensor is read on access; deleting only drops the name."""

    def __init__(
        self,
        folder: Folder,
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
        self._places: dict[str, tuple[SafetensorsFile, Entry]] = {}
        for file, entry in _entries(ModelFolder.of(folder), prefix):
            if names is None or entry.name in names:
                self._places[renamed.get(entry.name, entry.name)] = file, entry

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = _tensor(*self._places[name])
        return tensor.to(device=self._device, dtype=self._dtype)

    def kind(self, name: str) -> str | None:
        """The format of its codes; None where it is stored as numbers."""
        codes = self._places[name][1].codes
        return codes and codes.kind

    def in_codes(self, name: str) -> StoredWeight | None:
        """As stored, for a tensor in codes."""
        return _in_codes(*self._places[name])

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


def mapped_tensors(folder: Folder, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Tensors of `names` in the memory of their mapped files: nothing is read before it is used.
    They must not be written to."""
    found = {}
    for file, entry in _entries(ModelFolder.of(folder)):
        if entry.name in names:
            found[entry.name] = _mapped(file, entry)
    return found


def _mapped(file: SafetensorsFile, entry: Entry) -> torch.Tensor:
    dtype = _dtype(file, entry)
    if not entry.num_bytes or entry.start % dtype.itemsize:
        return _numbers(file, entry)
    with warnings.catch_warnings():  # that it cannot be written to
        warnings.simplefilter("ignore")
        count = entry.num_bytes // dtype.itemsize
        flat = torch.frombuffer(file.mapped, dtype=dtype, count=count, offset=entry.start)
    return flat.view(entry.shape)


class CodedTensors(StoredTensors):
    """As StoredTensors, but a layer's matrix is a QuantizedWeight in the codes of its GGUF, if
    kernels on a GPU multiply with them."""

    def __getitem__(self, name: str) -> Any:
        stored = self.in_codes(name) if name.endswith("_proj.weight") else None
        weight = None if stored is None else from_gguf(stored)
        if weight is None:
            return super().__getitem__(name)
        return weight.moved(lambda tensor: tensor.to(self._device))


def has_codes(folder: Folder) -> bool:
    """Whether weights of the folder are stored in the codes of a GGUF."""
    return any(entry.codes for _, entry in ModelFolder.of(folder).entries())


def _in_codes(file: SafetensorsFile, entry: Entry) -> StoredWeight | None:
    if entry.codes is None:
        return None
    return StoredWeight(entry.codes.kind, *entry.codes.shape, _numbers(file, entry))


def _tensor(file: SafetensorsFile, entry: Entry) -> torch.Tensor:
    weight = _in_codes(file, entry)
    return _numbers(file, entry) if weight is None else weight.dequantized()


def _dtype(file: SafetensorsFile, entry: Entry) -> torch.dtype:
    dtype = KINDS.get(entry.dtype)
    if dtype is None:
        raise CheckpointError(
            f"{file.path} holds {shown(entry.name)} in {entry.dtype}, which is not supported"
        )
    return dtype


def _numbers(file: SafetensorsFile, entry: Entry) -> torch.Tensor:
    dtype = _dtype(file, entry)
    *sizes, last = entry.shape or (1,)
    if dtype is torch.float4_e2m1fn_x2:  # two numbers per element
        last //= 2
    tensor = torch.empty([*sizes, last] if entry.shape else [], dtype=dtype)
    file.read_into(entry, tensor.view(-1).view(torch.uint8).numpy().data)
    return tensor


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
