"""The store's folder, and the space on its disk."""

import errno
import os
from pathlib import Path

from dspark.errors import StorageError
from dspark.machine import free_disk, megabytes

HOME_VARIABLE = "DSPARK_HOME"
FULL = (errno.ENOSPC, errno.EDQUOT)


def home() -> Path:
    """The store's folder: DSPARK_HOME, otherwise the platform's folder for user data."""
    if folder := os.environ.get(HOME_VARIABLE):
        return Path(folder).expanduser().absolute()
    try:
        import platformdirs
    except ModuleNotFoundError:  # a machine with PyTorch alone, which runs the engine all the same
        return Path.home() / ".local" / "share" / "dspark"
    return platformdirs.user_data_path("dspark", appauthor=False)


def check_disk(folder: Path, needed_bytes: int, variable: str = HOME_VARIABLE) -> None:
    """Raises StorageError if the disk of `folder` has less space than that."""
    free = free_disk(folder)
    if free < needed_bytes:
        raise StorageError(
            f"{megabytes(needed_bytes)} are needed in {folder}, {megabytes(free)} are free",
            f"Free some space, or set {variable} to a folder on another disk.",
        )


def shown_name(model: str) -> str:
    """A user's name for a model, short: a pair or an id in full, the last part of a path."""
    path = Path(model).expanduser()
    if not path.exists():
        return model
    return path.stem if path.is_file() else path.resolve().name
