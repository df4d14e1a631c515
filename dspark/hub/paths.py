"""Where dspark keeps what is its own, and whether a disk has room."""

import errno
import os
import shutil
from pathlib import Path

import platformdirs

from dspark.errors import StorageError

HOME_VARIABLE = "DSPARK_HOME"
FULL = (errno.ENOSPC, errno.EDQUOT)


def home() -> Path:
    """The store's folder: DSPARK_HOME, otherwise the platform's place for user data."""
    if chosen := os.environ.get(HOME_VARIABLE):
        return Path(chosen).expanduser().absolute()
    return platformdirs.user_data_path("dspark", appauthor=False)


def check_disk(folder: Path, needed_bytes: int, variable: str = HOME_VARIABLE) -> None:
    """Raises StorageError where the disk of `folder` has less space than that."""
    free = free_bytes(folder)
    if free < needed_bytes:
        raise StorageError(
            f"{_megabytes(needed_bytes)} are needed in {folder}, {_megabytes(free)} are free",
            f"Free some space, or set {variable} to a folder on another disk.",
        )


def free_bytes(folder: Path) -> int:
    """Of the disk on which a folder lies or would lie."""
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    return shutil.disk_usage(existing).free


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
