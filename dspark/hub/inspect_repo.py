"""Identifies a hub repository without a pair name by its config and index."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dspark.checkpoints.deepseek_v4_config import holds_own_head
from dspark.checkpoints.detect import SUBFOLDER, is_head
from dspark.checkpoints.model_folder import read_config
from dspark.config import RuntimeConfig
from dspark.errors import InputError
from dspark.events import FetchProgress
from dspark.hub.catalog.find import known_pair, known_pairs
from dspark.hub.catalog.pairs import HubRepo, LocalFolder, Pair
from dspark.hub.catalog.user_pairs import HUB_ID
from dspark.hub.pull_plan import PullPlan, check_plan, plan_listings
from dspark.hub.sources.hf_cache import cached_folder
from dspark.hub.sources.hf_download import check_head, fetch_repo
from dspark.hub.sources.hf_listing import (
    Listing,
    hub_errors,
    list_repo,
    open_client,
)

OWN_HEAD = "mtp."  # prefix of the tensors' names


@dataclass(frozen=True, slots=True)
class Published:
    """`kind` describes the repository in words, `options` are those of dspark chat that use it."""

    repo: HubRepo
    kind: str
    is_head: bool
    brings_head: bool
    options: str
    plan: PullPlan


def is_repo_id(name: str) -> bool:
    """Whether it has the form owner/name and is neither a known pair nor a local folder."""
    is_id = HUB_ID.fullmatch(name) is not None and known_pair(name) is None
    return is_id and not Path(name).expanduser().exists()


def look_up(repo_id: str, *, only_head: bool = False) -> Published:
    """Before any weights are downloaded. Raises CheckpointError for a head that cannot be run."""
    listing = _list(HubRepo(repo_id))
    packaging = check_head(listing)
    kind, brings_head = f"a head in the layout {packaging}", False
    if packaging is None:
        kind, brings_head = _kind(listing)
    if only_head and packaging is None:
        if not holds_own_head(listing.config):
            raise InputError(f"{repo_id} is {kind}", "Leave out --head-only.")
        listing = _list(HubRepo(repo_id, tensor_prefix=OWN_HEAD))
    is_head = packaging is not None or only_head
    options = f"--target {'TARGET' if is_head else repo_id}"
    options += f" --draft {repo_id}" * (is_head or brings_head)
    plan = plan_listings(repo_id, [listing])
    return Published(listing.repo, kind, is_head, brings_head, options, plan)


def is_head_folder(folder: Path) -> bool:
    """Whether it is a head alone; a target with a head counts as a target."""
    return is_head(read_config(folder))


def brings_head(folder: Path) -> bool:
    """Whether a target has a head among its tensors or in a subfolder."""
    in_folder = (folder / SUBFOLDER / "config.json").is_file()
    return in_folder or holds_own_head(read_config(folder))


def pair_of_target(path_or_id: str) -> Pair | None:
    """The first known pair of a head and this target, a folder or an id of the hub."""
    path = Path(path_or_id).expanduser()
    source = LocalFolder(path.resolve()) if path.is_dir() else HubRepo(path_or_id)
    for pair in known_pairs().values():
        target = pair.target
        is_same = target == source or (
            isinstance(target, HubRepo)
            and isinstance(source, HubRepo)
            and target.repo_id == source.repo_id
        )
        if is_same and pair.draft is not None:
            return pair
    return None


def kept_folder(repo_id: str, *, only_head: bool = False) -> Path | None:
    """Its folder, once complete; with `only_head`, once its head is."""
    folder = cached_folder(HubRepo(repo_id))
    return folder or (
        cached_folder(HubRepo(repo_id, tensor_prefix=OWN_HEAD)) if only_head else None
    )


def fetch_published(
    found: Published, *, is_forced: bool = False, runtime: RuntimeConfig | None = None
) -> Iterator[FetchProgress]:
    """Makes `cached_folder(found.repo)` succeed. May be stopped at any point and called again.

    A model that cannot run on `runtime` (None: on any device here) is only fetched if forced.
    """
    if not (found.is_head or is_forced):
        check_plan(found.plan, runtime)
    if cached_folder(found.repo) is None:
        yield from fetch_repo(found.repo)


def _list(repo: HubRepo) -> Listing:
    with hub_errors(repo.repo_id), open_client() as client:
        return list_repo(client, repo)


def _kind(listing: Listing) -> tuple[str, bool]:
    """A description of a target, with its head if it has one."""
    if holds_own_head(listing.config):
        return "a target with its own DSpark head", True
    if any(file.path == f"{SUBFOLDER}/config.json" for file in listing.files):
        return f"a target with a head in its folder {SUBFOLDER}", True
    return "a target without a head", False
