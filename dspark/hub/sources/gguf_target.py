"""A user's GGUF as a target: converted once into the store, then found there."""

import hashlib
from collections.abc import Generator
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from dspark.atomic import new_folder
from dspark.checkpoints.gguf_codes import CONVERSION
from dspark.errors import StorageError
from dspark.events import FetchProgress
from dspark.hub.paths import home

SUFFIX = ".gguf"


def gguf_file(name: str) -> Path | None:
    """The file at that path, if there is one."""
    path = Path(name).expanduser()
    return path.resolve() if path.suffix == SUFFIX and path.is_file() else None


def converted_folder(path: Path) -> Path | None:
    """The folder converted from the file's current content."""
    folder = _folder(path)
    return folder if folder.is_dir() else None


def convert_file(path: Path) -> Generator[FetchProgress, None, Path]:
    """Makes `converted_folder` succeed, and returns it; the folder appears once it is whole."""
    from dspark.checkpoints.gguf import convert_gguf  # brings torch

    folder = _folder(path)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock"), thread_local=False):
            if folder.is_dir():
                return folder
            with new_folder(folder, folder.with_suffix(".unfinished")) as workshop:
                yield from convert_gguf(path, workshop)
        return folder
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path.name} could not be converted into {folder.parent} ({error})",
            "Free some space, or set DSPARK_HOME to a folder on another disk.",
        ) from error


def _folder(path: Path) -> Path:
    """A folder name that changes with the file and with the version of the conversion."""
    facts = path.stat()
    identity = f"{path} {facts.st_size} {facts.st_mtime_ns} {CONVERSION}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return home() / "gguf" / f"{path.stem.replace('.', '_')}-{digest}"
