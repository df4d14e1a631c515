"""The files of a repository on the Hugging Face hub, and those that a pair needs."""

import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from dspark import __version__
from dspark.checkpoints.detect import SUBFOLDER
from dspark.checkpoints.weight_set import INDEX, SINGLE
from dspark.errors import DownloadError, DSparkError, StorageError, UnknownNameError
from dspark.http_client import make_client, usable_environment
from dspark.hub.catalog.pairs import HubRepo
from dspark.hub.paths import FULL
from dspark.hub.readable_weights import check_files, check_packing
from dspark.hub.sources.hf_cache import wanted_shards
from dspark.hub.sources.http_download import HINT
from dspark.lazy_httpx import httpx

MAX_JSON_BYTES = 256 << 20
BLOB_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of one commit; `blob_id` is the sha256 of a large file, git's sha1 of a small one."""

    path: str
    num_bytes: int
    blob_id: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The wanted files of a repository at one commit, small ones first, and its config."""

    repo: HubRepo
    commit: str
    files: tuple[RemoteFile, ...]
    config: dict[str, Any]

    @property
    def weight_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files if file.path.endswith(".safetensors"))


def open_client() -> "httpx.Client":
    """With the user's token and proxies; the hub redirects large files to another host."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # lazy there

    headers = build_hf_headers(library_name="dspark", library_version=__version__)
    timeout = httpx.Timeout(30.0)
    return make_client(endpoint(), headers=headers, follow_redirects=True, timeout=timeout)


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, or huggingface.co."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def open_session() -> None:
    """Creates the client that the hub's library keeps while its proxies are usable."""
    from huggingface_hub import get_session

    with usable_environment(endpoint()):
        get_session()


def list_repo(client: "httpx.Client", repo: HubRepo) -> Listing:
    """Reads the repository's list, config and index; no weights."""
    from huggingface_hub import HfApi

    open_session()
    info = HfApi().model_info(repo.repo_id, revision=repo.revision, files_metadata=True)
    commit = info.sha
    by_path = {}
    for each in info.siblings or []:
        blob_id = each.lfs.sha256 if each.lfs else each.blob_id
        if _is_data(each.rfilename, repo) and blob_id and BLOB_ID.fullmatch(blob_id):
            file = RemoteFile(each.rfilename, each.size or 0, blob_id)
            by_path[file.path] = file
    check_files(repo.repo_id, [each.rfilename for each in info.siblings or []])
    if commit is None or not BLOB_ID.fullmatch(commit) or "config.json" not in by_path:
        raise DownloadError(f"the hub's list of {repo.repo_id} is invalid", HINT)
    config = _read_json(client, repo, commit, by_path["config.json"])
    check_packing(repo.repo_id, config)
    index = _read_json(client, repo, commit, by_path[INDEX]) if INDEX in by_path else None
    needed = _wanted(repo, set(by_path), index)
    files = sorted((by_path[path] for path in needed), key=lambda file: file.num_bytes)
    return Listing(repo, commit, tuple(files), config)


def _is_data(path: str, repo: HubRepo) -> bool:
    """Files at the top, and those of a head in a subfolder; paths never lead outside."""
    folder, _, name = path.rpartition("/")
    is_inside = ".." not in PurePosixPath(path).parts and "\\" not in path
    fits = any(fnmatchcase(name, pattern) for pattern in repo.patterns)
    return folder in ("", SUBFOLDER) and is_inside and fits


def _wanted(repo: HubRepo, paths: set[str], index: dict[str, Any] | None) -> set[str]:
    """The set of weights that transformers would read: the single file, unless the index names it,
    else the index's files; for a head in shards, those."""
    top_weights = {path for path in paths if path.endswith(".safetensors") and "/" not in path}
    others, single = paths - top_weights, {SINGLE} & top_weights
    if index is None:
        return others | (single or top_weights)
    try:
        shards = wanted_shards(index, repo.tensor_prefix or "")
    except ValueError as error:
        raise DownloadError(f"the index of {repo.repo_id} is broken: {error}") from error
    if single and not repo.tensor_prefix and SINGLE not in shards:
        return others - {INDEX} | single
    if missing := sorted(shards - top_weights):
        raise DownloadError(
            f"{repo.repo_id} lacks {missing[0]}, which its index names",
            "The repository is incomplete; ask its owner.",
        )
    return others | shards


def file_url(repo: HubRepo, commit: str, path: str) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repo.repo_id, path, revision=commit)


def _read_json(
    client: "httpx.Client", repo: HubRepo, commit: str, file: RemoteFile
) -> dict[str, Any]:
    if file.num_bytes > MAX_JSON_BYTES:
        raise DownloadError(f"{file.path} of {repo.repo_id} has {file.num_bytes:,} bytes")
    response = client.get(file_url(repo, commit, file.path))
    response.raise_for_status()
    try:
        content = json.loads(response.content)
    except ValueError as error:
        raise DownloadError(f"{file.path} of {repo.repo_id} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise DownloadError(f"{file.path} of {repo.repo_id} is not a JSON object")
    return content


class HubUnreachableError(DownloadError):
    """No network, or HF_HUB_OFFLINE is set."""


@contextmanager
def hub_errors(repo_id: str, pair: str | None = None) -> Iterator[None]:
    """Turns errors of the hub's library or the network into one line.

    `pair` is the user's name for it, if that was a pair and not the repository itself.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except (DSparkError, MemoryError):
        raise
    except GatedRepoError as error:
        raise DownloadError(
            f"{repo_id} is gated on the Hugging Face hub",
            "Ask for access on its page, then run hf auth login.",
        ) from error
    except (RepositoryNotFoundError, HFValidationError, RevisionNotFoundError) as error:
        raise UnknownNameError(
            f"there is no folder {repo_id}, and no such model on the Hugging Face hub",
            "Check the name; a private model needs hf auth login.",
        ) from error
    except Exception as error:  # HTTP libraries' errors share no base class
        raise _other_failure(repo_id, pair, error) from error


def _other_failure(
    repo_id: str, pair: str | None, error: Exception
) -> DownloadError | StorageError:
    if _is_unreachable(error):
        return _unreachable(repo_id, pair)
    if isinstance(error, OSError) and error.errno in (*FULL, errno.EACCES, errno.EROFS):
        return StorageError(
            f"{repo_id} cannot be stored: {error.strerror}"
            + (f": {error.filename}" if error.filename else ""),
            ("Free some space" if error.errno in FULL else "Check its permissions")
            + ", or set HF_HOME to a folder on another disk; downloads resume.",
        )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DownloadError(f"{repo_id} cannot be downloaded: {reason}", HINT)


def _unreachable(repo_id: str, pair: str | None) -> HubUnreachableError:
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).netloc
    if constants.HF_HUB_OFFLINE:
        reason = f"HF_HUB_OFFLINE is set, so {pair or 'it'} is not fetched from {host}"
        hint = "Unset HF_HUB_OFFLINE to go online."
    elif pair:
        reason = f"could not reach {host} to fetch {pair}"
        hint = "Check the network and the proxy settings."
    else:
        reason = f"{host} could not be reached"
        hint = "Check the path, the network and the proxy settings."
    return HubUnreachableError(
        reason if pair else f"there is no folder {repo_id}, and {reason}", hint
    )


def _is_unreachable(error: Exception) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    # recognised by name: the hub's library has changed its HTTP library before
    is_transport = any(each.__name__ == "TransportError" for each in type(error).__mro__)
    return is_transport or isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled)
