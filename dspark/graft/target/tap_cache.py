"""Optional cache of taps on disk: computed once, read by every later epoch and run.

One safetensors file per sequence, renamed into place when complete, so that a killed run leaves no
partial file.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dspark.atomic import replacing
from dspark.checkpoints.model_folder import weight_files
from dspark.errors import InputError, StorageError
from dspark.machine import free_disk, gibibytes

IDENTITY_FILE = "identity.json"

TokenIds = tuple[int, ...]


def identity(target: Path, tap_layers: Sequence[int], device: str, dtype: str) -> str:
    """Everything besides the tokens that determines cached values. Reads all of the target's
    files."""
    digest = hashlib.sha256((target / "config.json").read_bytes())
    for path in weight_files(target):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    facts = {"target": digest.hexdigest(), "taps": list(tap_layers), "device": device}
    return json.dumps({**facts, "dtype": dtype}, sort_keys=True)


class TapCache:
    """`reserve_bytes` of the disk are left free for a run's other files."""

    def __init__(self, folder: Path, identity: str, reserve_bytes: int = 0) -> None:
        """Raises InputError if the folder is of another target or other layers."""
        self.folder, self.reserve_bytes = folder, reserve_bytes
        self.is_full = self._has_told = False
        path = folder / IDENTITY_FILE
        stored = path.read_text() if path.exists() else None
        if stored not in (None, identity):
            raise InputError(
                f"{folder} holds taps of another target, other layers or another number format",
                "Give another --tap-cache, or delete that folder.",
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._replacing(path) as partial:
                partial.write_text(identity)
        except OSError as error:
            raise StorageError(
                f"the tap cache {folder} cannot be written ({error.strerror})",
                "Give another --tap-cache, or train without it.",
            ) from error

    @property
    def room(self) -> int:
        return max(0, free_disk(self.folder) - self.reserve_bytes)

    def __contains__(self, token_ids: TokenIds) -> bool:
        return self._path(token_ids).exists()

    def takes(self, size: int) -> bool:
        """Whether so many bytes could be written."""
        return not self.is_full and size <= self.room

    def require_room(self, sequences: Iterable[TokenIds], bytes_a_token: int) -> str:
        """A note on the bytes still to be written. Raises StorageError if they do not fit."""
        missing = {ids for ids in sequences if ids not in self}
        needed = bytes_a_token * sum(map(len, missing))
        if needed > self.room:
            raise StorageError(
                f"the tap cache needs {gibibytes(needed)} more, {self.folder} has room for "
                f"{gibibytes(self.room)}",
                "Give --tap-cache on a larger disk, or train without it.",
            )
        return f"tap cache {self.folder}: {gibibytes(needed)} still to be written"

    def take_note(self) -> tuple[str, ...]:
        """Returned once, when writing has ended."""
        if not self.is_full or self._has_told:
            return ()
        self._has_told = True
        return (f"tap cache {self.folder}: the disk is full, the other taps are recomputed",)

    def read(self, token_ids: TokenIds) -> dict[str, torch.Tensor] | None:
        """None if the file is missing, or truncated by a crash."""
        path = self._path(token_ids)
        try:
            return load_file(path) if path.exists() else None
        except (SafetensorError, OSError):
            return None

    def write(self, token_ids: TokenIds, tensors: dict[str, torch.Tensor]) -> None:
        """Stops writing once the disk is full: a cache must not end a training."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        path = self._path(token_ids)
        try:
            if not self.takes(size):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            path.parent.mkdir(exist_ok=True)
            whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            with self._replacing(path) as partial:
                save_file(whole, partial)
        except (OSError, SafetensorError):
            self.is_full = True

    def _path(self, token_ids: TokenIds) -> Path:
        name = hashlib.sha256(json.dumps(token_ids).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def _replacing(self, path: Path) -> AbstractContextManager[Path]:
        """A fixed name per training process, so that the leftover of a killed one is
        overwritten."""
        return replacing(path, self.folder / f".{os.environ.get('RANK', '0')}.tmp")
