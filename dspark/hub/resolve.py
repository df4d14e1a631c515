"""From a user's name for a model or head, a path or a Hugging Face id, to a folder."""

from collections.abc import Generator
from pathlib import Path

from dspark.checkpoints.model_folder import check_model_folder
from dspark.config import RuntimeConfig
from dspark.errors import CheckpointError, UnknownNameError
from dspark.events import FetchProgress
from dspark.hub import store
from dspark.hub.catalog.find import known_pair
from dspark.hub.catalog.pairs import HubRepo, Pair, PairFiles
from dspark.hub.catalog.user_pairs import HUB_ID
from dspark.hub.inspect_repo import fetch_published, is_repo_id, look_up
from dspark.hub.sources.gguf_target import convert_file, converted_folder, gguf_file
from dspark.hub.sources.hf_cache import cached_folder
from dspark.hub.sources.hf_download import mend_repo
from dspark.progress import follow

NO_DRAFT = "none"


def resolve_target(path_or_id: str) -> Path:
    """A folder with config.json and safetensors; an id is fetched if not in the cache, a GGUF is
    converted once."""
    if known_pair(path_or_id):
        return _stored(path_or_id).target
    if (file := gguf_file(path_or_id)) is not None:
        return converted_folder(file) or follow(convert_file(file))
    return check_model_folder(_folder(path_or_id))


def resolve_draft(path_or_id: str) -> Path | None:
    """As resolve_target, for a head; "none" means no head."""
    if path_or_id == NO_DRAFT:
        return None
    if pair := known_pair(path_or_id):
        return _stored_head(pair)
    return check_model_folder(_folder(path_or_id))


def _stored(name: str) -> PairFiles:
    files = store.locate(name)
    if files is None:
        raise UnknownNameError(f"{name} is not in the store yet", f"Run dspark pull {name} first.")
    return files


def _stored_head(pair: Pair) -> Path | None:
    folder = store.draft_folder(pair)
    if folder is None and pair.draft is not None:
        raise UnknownNameError(
            f"the head of {pair.name} is not on disk yet",
            f"Run dspark pull {pair.name} --head-only first.",
        )
    return folder


def fetch_missing(
    path_or_id: str, *, is_head: bool = False, runtime: RuntimeConfig | None = None
) -> Generator[FetchProgress, None, None]:
    """Fetches or converts the files that resolve_target or resolve_draft need, with progress.

    `runtime` as in fetch_published.
    """
    file = None if is_head else gguf_file(path_or_id)
    if file is not None and converted_folder(file) is None:
        yield from convert_file(file)
    if is_repo_id(path_or_id):
        if cached_folder(HubRepo(path_or_id)) is None:
            yield from fetch_published(look_up(path_or_id), runtime=runtime)
        else:
            yield from mend_repo(HubRepo(path_or_id))


def _folder(path_or_id: str) -> Path:
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(
            f"{path_or_id} is a file", "Give the folder with config.json and the weights."
        )
    if HUB_ID.fullmatch(path_or_id):
        return _repository(HubRepo(path_or_id))
    raise UnknownNameError(
        f"{path_or_id!r} is neither a folder nor a Hugging Face id",
        "Check the path; an id has the form owner/name.",
    )


def _repository(repo: HubRepo) -> Path:
    """A complete repository in the cache is used as it is; only missing files are downloaded."""
    follow(fetch_missing(repo.repo_id))
    folder = cached_folder(repo)
    assert folder is not None, "a fetch ends with the repository in the cache or with an error"
    return folder
