"""Downloads a repository of the Hugging Face hub into the Hugging Face cache, with resuming.

The hub's own library discards partial files, so the bytes are fetched by ranges into the cache's
folder of blobs, where the library finds them.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from dspark.atomic import replacing
from dspark.checkpoints.detect import Packaging, is_head
from dspark.errors import DownloadError, DSparkError
from dspark.events import FetchProgress
from dspark.hub.catalog.pairs import HubRepo
from dspark.hub.paths import check_disk, home
from dspark.hub.sources.hf_cache import (
    cached_folder,
    is_known_whole,
    record_whole,
    repo_folder,
    snapshot_folder,
    surely_missing,
)
from dspark.hub.sources.hf_listing import (
    Listing,
    RemoteFile,
    file_url,
    hub_errors,
    list_repo,
    open_client,
)
from dspark.hub.sources.http_download import check_sha256, download, size_of
from dspark.lazy_httpx import httpx

PART = ".dspark.incomplete"
LOCK_SECONDS = 0.5


def fetch_repo(repo: HubRepo, pair: str | None = None) -> Iterator[FetchProgress]:
    """Makes `cached_folder(repo)` succeed. May be stopped at any point and called again.

    `pair` is the user's name for it, if that was a pair.
    """
    with hub_errors(repo.repo_id, pair), open_client() as client:
        listing = list_repo(client, repo)
        check_head(listing)
        check_repo_disk(listing)
        locks = home() / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{repo_folder(repo).name}.lock", thread_local=False)
        yield from _wait_for(lock, repo)
        try:
            for file in missing_files(listing):
                yield from _fetch_file(client, listing, file)
            _finish(listing)
            record_whole(repo, listing.commit, [file.path for file in listing.files])
        finally:
            lock.release()


def mend_repo(repo: HubRepo, pair: str | None = None) -> Iterator[FetchProgress]:
    """As fetch_repo, for the missing files of a snapshot that other programs left in the cache.

    The hub is asked once per snapshot. If it is unreachable, files known to be missing are named.
    """
    folder = cached_folder(repo)
    if folder is None:
        yield from fetch_repo(repo, pair)
    elif not is_known_whole(repo):
        there = replace(repo, revision=folder.name)
        listing = _list_if_reached(there)
        if listing is None:
            _check_essentials(repo, folder)
        elif missing_files(listing):
            yield from fetch_repo(there, pair)
        else:
            record_whole(repo, listing.commit, [file.path for file in listing.files])


def needs_look(repo: HubRepo) -> bool:
    """Whether mend_repo may have something to do."""
    return not is_known_whole(repo)


def _list_if_reached(repo: HubRepo) -> Listing | None:
    """None if the hub cannot be reached, or no longer has that commit."""
    try:
        with hub_errors(repo.repo_id), open_client() as client:
            return list_repo(client, repo)
    except DSparkError:
        return None


def _check_essentials(repo: HubRepo, folder: Path) -> None:
    if missing := surely_missing(folder):
        raise DownloadError(
            f"the Hugging Face cache has {repo.repo_id} without {missing}, and the hub cannot be "
            "reached",
            "Go online and run the same command again, or pull it there: dspark pull "
            f"{repo.repo_id}.",
        )


def check_head(listing: Listing) -> Packaging | None:
    """The packaging of a head; raises CheckpointError if it cannot be run. None: no head.

    Decided from config and listing, before any weights are downloaded.
    """
    if not is_head(listing.config):
        return None
    from dspark.checkpoints.heads import check_published  # brings torch

    return check_published(listing.config, listing.repo.repo_id)


def check_repo_disk(listing: Listing) -> None:
    check_disk(repo_folder(listing.repo), disk_still_needed(listing), "HF_HOME")


def disk_still_needed(listing: Listing) -> int:
    """Bytes that are not on disk yet, partial files included."""
    missing = missing_files(listing)
    return sum(max(0, file.num_bytes - size_of(_part(listing, file))) for file in missing)


def missing_files(listing: Listing) -> list[RemoteFile]:
    snapshot = snapshot_folder(listing.repo, listing.commit)
    return [file for file in listing.files if not (snapshot / file.path).exists()]


def _wait_for(lock: FileLock, repo: HubRepo) -> Iterator[FetchProgress]:
    """Waits for another dspark that fetches the same repository."""
    while True:
        try:
            lock.acquire(timeout=LOCK_SECONDS)
            return
        except Timeout:
            yield FetchProgress(repo.repo_id, 0, None)


def _fetch_file(
    client: "httpx.Client", listing: Listing, file: RemoteFile
) -> Iterator[FetchProgress]:
    from huggingface_hub import hf_hub_download

    repo, blob = listing.repo, _blob(listing, file)
    name = f"{repo.repo_id}/{file.path}"
    if size_of(blob) != file.num_bytes:
        part = _part(listing, file)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        url = file_url(repo, listing.commit, file.path)
        yield from download(client, url, part, name, file.num_bytes)
        _check(part, name, file)
        os.replace(part, blob)
    # finds the blob and links the snapshot to it, as this file system allows
    hf_hub_download(repo.repo_id, file.path, revision=listing.commit)


def _blob(listing: Listing, file: RemoteFile) -> Path:
    return repo_folder(listing.repo) / "blobs" / file.blob_id


def _part(listing: Listing, file: RemoteFile) -> Path:
    blob = _blob(listing, file)
    return blob.with_name(f"{blob.name}{PART}")


def _check(path: Path, name: str, file: RemoteFile) -> None:
    if len(file.blob_id) == 64:
        check_sha256(path, name, file.blob_id)
        return
    content = path.read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if digest != file.blob_id:
        path.unlink()
        raise DownloadError(
            f"{name} is not the file that the hub listed; it was discarded",
            "Run the same command again.",
        )


def _finish(listing: Listing) -> None:
    """Points the branch to the commit once complete; removes leftovers of older commits."""
    folder = repo_folder(listing.repo)
    revision = listing.repo.revision or "main"
    if revision != listing.commit:
        ref = folder / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        with replacing(ref) as part:
            part.write_text(listing.commit)
    for leftover in (folder / "blobs").glob(f"*{PART}"):
        leftover.unlink()
