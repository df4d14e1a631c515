"""The local store: where pairs lie on disk, how much they take, how they go away."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from dspark.errors import StorageError
from dspark.hub.folders import check_model_folder
from dspark.hub.pairs import PAIRS, Pair, PairFiles, find_pair

HOME_VARIABLE = "DSPARK_HOME"
FULL = (errno.ENOSPC, errno.EDQUOT)


def home() -> Path:
    """The store's folder: DSPARK_HOME, otherwise the platform's place for user data."""
    if chosen := os.environ.get(HOME_VARIABLE):
        return Path(chosen).expanduser().absolute()
    return platformdirs.user_data_path("dspark", appauthor=False)


def pair_folder(pair: Pair) -> Path:
    return home() / "pairs" / pair.name


def download_path(pair: Pair) -> Path:
    return home() / "downloads" / pair.target.filename


def part_path(pair: Pair) -> Path:
    """What has come of a download so far."""
    whole = download_path(pair)
    return whole.with_name(f"{whole.name}.part")


def pair_lock(pair: Pair) -> FileLock:
    """Held by whoever fetches or removes the pair. Its folder must exist."""
    # a generator may be closed by another thread than the one that began it
    return FileLock(home() / "locks" / f"{pair.name}.lock", thread_local=False)


def locate(name_or_path: str) -> PairFiles | None:
    """What is on disk already: a pair in the store, or a folder with a model and no head."""
    if pair := PAIRS.get(name_or_path):
        target = pair_folder(pair) / "target"
        return PairFiles(pair.name, target, draft_folder(pair)) if is_complete(target) else None
    path = Path(name_or_path).expanduser()
    if not path.is_dir():
        return None
    return PairFiles(path.resolve().name, check_model_folder(path), None)


def is_complete(target: Path) -> bool:
    # the folder appears by one rename, so a look at two of its files is enough
    return (target / "config.json").is_file() and (target / "model.safetensors").is_file()


def draft_folder(pair: Pair) -> Path | None:
    if pair.draft is None:
        return None
    folder = Path(str(resources.files("dspark.assets") / pair.draft.folder))
    return folder if (folder / "config.json").is_file() else None


def stored_bytes(pair: Pair) -> int:
    """All that the pair takes in the store, unfinished downloads included."""
    return sum(folder_bytes(path) for path in _traces(pair))


def folder_bytes(path: Path) -> int:
    """Size of a file or of everything in a folder; 0 where there is nothing."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def remove(name: str) -> int:
    """Take a pair out of the store; returns the bytes set free. What dspark ships stays."""
    pair = find_pair(name)
    freed = stored_bytes(pair)
    if not any(path.exists() for path in _traces(pair)):
        return 0
    with storage_errors(home()):
        try:
            (home() / "locks").mkdir(exist_ok=True)
            with pair_lock(pair).acquire(timeout=0):
                _remove_traces(pair)
        except Timeout as error:
            raise StorageError(
                f"{name} is being fetched by another dspark", "Wait for it or stop it first."
            ) from error
    return freed


def _traces(pair: Pair) -> tuple[Path, ...]:
    return pair_folder(pair), download_path(pair), part_path(pair)


def _remove_traces(pair: Pair) -> None:
    folder, *files = _traces(pair)
    if folder.exists():
        # out of sight first: a removal cut short must not leave half a model to be found
        condemned = folder.with_name(f".{folder.name}.removed")
        shutil.rmtree(condemned, ignore_errors=True)
        folder.rename(condemned)
        shutil.rmtree(condemned)
    for file in files:
        file.unlink(missing_ok=True)


def check_disk(folder: Path, needed_bytes: int, variable: str = HOME_VARIABLE) -> None:
    """Raises StorageError where the disk of `folder` has less space than that."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise StorageError(
            f"{_megabytes(needed_bytes)} are needed in {folder}, {_megabytes(free)} are free",
            f"Free some space, or set {variable} to a folder on another disk.",
        )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turns what the operating system says about a disk into one StorageError."""
    try:
        yield
    except OSError as error:
        place = error.filename or folder
        if error.errno in FULL:
            raise StorageError(
                f"the disk is full: {place}",
                "Free some space and run the same command again; downloads go on where they ended.",
            ) from error
        raise StorageError(
            f"{place} cannot be used ({error.strerror or error})",
            f"Check its permissions, or set {HOME_VARIABLE} to another folder.",
        ) from error
