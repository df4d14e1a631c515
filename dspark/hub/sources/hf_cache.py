"""The Hugging Face cache: which repositories are complete in it."""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dspark.atomic import replacing
from dspark.checkpoints.detect import is_head
from dspark.checkpoints.model_folder import read_config
from dspark.checkpoints.weight_set import INDEX, SINGLE, read_weight_map, weight_names
from dspark.errors import CheckpointError
from dspark.hub.catalog.pairs import HubRepo
from dspark.hub.paths import home

PART = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
# a tokenizer can be read from any of these
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def repo_folder(repo: HubRepo) -> Path:
    """The cache's folder of a repository: blobs, snapshots, refs."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo.repo_id, repo_type="model")


def snapshot_folder(repo: HubRepo, commit: str) -> Path:
    return repo_folder(repo) / "snapshots" / commit


def repo_bytes(repo: HubRepo) -> int:
    """Its size on disk; links in a snapshot do not count."""
    paths = repo_folder(repo).rglob("*")
    return sum(each.stat().st_size for each in paths if each.is_file() and not each.is_symlink())


def cached_folder(repo: HubRepo) -> Path | None:
    """The snapshot of a repository, if all wanted files are in it."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo.repo_id, "config.json", revision=repo.revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if _has_weights(folder, repo.tensor_prefix or "") else None


def _has_weights(folder: Path, prefix: str) -> bool:
    try:
        names = weight_names(folder, prefix, read_weight_map(folder))
    except CheckpointError:
        return False
    if names == [SINGLE] and not (folder / INDEX).is_file():  # a head may name it differently
        weight_files = [path.name for path in folder.glob("*.safetensors")]
        return bool(weight_files) and not any(PART.search(name) for name in weight_files)
    return bool(names) and all((folder / name).is_file() for name in names)


def is_known_whole(repo: HubRepo) -> bool:
    """Whether every wanted file of the snapshot exists, by the hub's last listing."""
    folder = cached_folder(repo)
    if folder is None:
        return False
    try:
        listed = json.loads(_record(repo, folder.name).read_text(encoding="utf-8"))
        return all((folder / path).is_file() for path in listed)
    except (OSError, ValueError, TypeError):
        return False


def record_whole(repo: HubRepo, commit: str, paths: Iterable[str]) -> None:
    """Stores the listing, so that the hub is asked once; on a read-only disk, every time."""
    path = _record(repo, commit)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_text(json.dumps(sorted(paths)), encoding="utf-8")


def _record(repo: HubRepo, commit: str) -> Path:
    inside = f".{repo.tensor_prefix.strip('.')}" if repo.tensor_prefix else ""
    return home() / "whole" / f"{repo_folder(repo).name}@{commit}{inside}.json"


def surely_missing(folder: Path) -> str:
    """The files a target in the cache lacks, as far as known without the hub's list; "" if none.

    A base model may have neither generation_config.json nor a chat template.
    """
    absent = folder.parents[1] / ".no_exist" / folder.name  # files that the hub does not have
    has_words = any((folder / name).is_file() for name in VOCABULARIES)
    has_words = has_words or (absent / VOCABULARIES[0]).exists()
    return "" if has_words or is_head(read_config(folder)) else VOCABULARIES[0]


def wanted_shards(index: object, prefix: str) -> set[str]:
    """The files with tensors of that prefix; raises ValueError for an invalid index."""
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise ValueError("it has no weight_map")
    return {str(shard) for name, shard in weight_map.items() if name.startswith(prefix)}
