"""The plan of a fetch, with the verdict whether it fits: from listing, config and index alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dspark.checkpoints.deepseek_v4_config import holds_own_head
from dspark.checkpoints.detect import is_head
from dspark.config import RuntimeConfig
from dspark.hub import memory_fit, store
from dspark.hub.catalog.find import find_pair
from dspark.hub.catalog.pairs import (
    HubRepo,
    OtherPair,
    Pair,
    WheelMember,
)
from dspark.hub.footprint import Footprint, cache_values, of_listing, stored_values
from dspark.hub.memory_fit import check_room, pair_footprint
from dspark.hub.memory_needed import Room, memory_needed
from dspark.hub.paths import home
from dspark.hub.sources.hf_cache import cached_folder, repo_bytes, repo_folder
from dspark.hub.sources.hf_download import check_head, disk_still_needed, missing_files
from dspark.hub.sources.hf_listing import (
    HubUnreachableError,
    Listing,
    hub_errors,
    list_repo,
    open_client,
)
from dspark.hub.sources.pypi_wheel import wheel_disk_needed
from dspark.machine import free_disk

Origin = Literal["listing", "registry"]


@dataclass(frozen=True, slots=True)
class PlannedFile:
    source: str
    path: str
    num_bytes: int
    is_missing: bool


@dataclass(frozen=True, slots=True)
class PullPlan:
    """`disk_needed` is in `folder`; `memory_needed` on the default device, with a long chat. None
    is not established. `origin` of the sizes is "listing" or, offline, "registry".
    """

    pair: str
    files: tuple[PlannedFile, ...]
    folder: str
    disk_needed: int
    disk_free: int
    footprint: Footprint | None
    memory_needed: int | None
    rooms: tuple[Room, ...]
    options: str = ""  # with which it fits, if it does not by default
    origin: Origin = "listing"

    @property
    def download_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files if file.is_missing)

    @property
    def fits_disk(self) -> bool:
        return self.disk_needed <= self.disk_free

    @property
    def fits_memory(self) -> bool:
        """By default, or with `options`."""
        needed = self.memory_needed
        return needed is None or needed <= self.rooms[0].usable or bool(self.options)


def plan_pull(name: str, *, only_head: bool = False) -> PullPlan:
    """Writes nothing and requests no weights."""
    pair = find_pair(name)
    if isinstance(pair.target, OtherPair):
        return plan_pull(pair.target.name)
    if isinstance(pair.target, WheelMember):
        return _plan_wheel(pair, pair.target)
    repos = wanted_repos(pair, only_head)
    try:
        listings = [_list(repo, pair.name) for repo in repos]
    except HubUnreachableError:
        if any(repo.num_bytes is None for repo in repos):
            raise
        return _plan_by_registry(pair, repos, None if only_head else pair_footprint(pair))
    for listing in listings:
        check_head(listing)
    return plan_listings(pair.name, listings, None if only_head else pair)


def plan_listings(name: str, listings: list[Listing], pair: Pair | None = None) -> PullPlan:
    """`pair`: the known pair it belongs to, if any."""
    folder = repo_folder(listings[0].repo).parent if listings else home()
    return _plan(
        name,
        tuple(file for listing in listings for file in _files(listing)),
        folder,
        sum(disk_still_needed(listing) for listing in listings),
        (pair_footprint(pair) if pair else None) or _footprint(listings),
    )


def _plan(
    name: str,
    files: tuple[PlannedFile, ...],
    folder: Path,
    disk: int,
    of: Footprint | None,
    origin: Origin = "listing",
) -> PullPlan:
    rooms = memory_fit.rooms()
    needed = None if of is None else memory_needed(of, rooms[0])
    fitting = [
        options
        for room, options in memory_fit.settings(rooms)
        if of is not None and memory_needed(of, room) <= room.usable
    ]
    return PullPlan(
        pair=name,
        files=files,
        folder=str(folder),
        disk_needed=disk,
        disk_free=free_disk(folder),
        footprint=of,
        memory_needed=needed,
        rooms=tuple(rooms),
        options=fitting[0] if fitting else "",
        origin=origin,
    )


def _plan_by_registry(pair: Pair, repos: list[HubRepo], of: Footprint | None) -> PullPlan:
    """The weights alone, by the sizes in dspark's catalogue."""
    missing = [repo for repo in repos if cached_folder(repo) is None]
    files = tuple(
        PlannedFile(repo.repo_id, "weights", repo.num_bytes or 0, repo in missing) for repo in repos
    )
    needed = sum(max(0, (repo.num_bytes or 0) - repo_bytes(repo)) for repo in missing)
    folder = repo_folder(repos[0]).parent if repos else home()
    return _plan(pair.name, files, folder, needed, of, "registry")


def check_plan(plan: PullPlan, runtime: RuntimeConfig | None = None) -> None:
    """Raises MemoryFullError if the download cannot run on `runtime`; None: on any device here."""
    if plan.footprint is None:
        return
    ways = (
        "use a smaller model; or serve it on GPUs that hold it, then dspark chat --server URL; "
        f"dspark pull {plan.pair} --force fetches it anyway."
    )
    check_room(plan.footprint, plan.pair, runtime, ways)


def wanted_repos(pair: Pair, only_head: bool = False) -> list[HubRepo]:
    """A head in its target's own shards comes with the target."""
    sources = (pair.draft,) if only_head else (pair.target, pair.draft)
    repos = [source for source in sources if isinstance(source, HubRepo)]
    whole = {repo.repo_id for repo in repos if repo.tensor_prefix is None}
    return [repo for repo in repos if repo.tensor_prefix is None or repo.repo_id not in whole]


def _list(repo: HubRepo, pair: str) -> Listing:
    with hub_errors(repo.repo_id, pair), open_client() as client:
        return list_repo(client, repo)


def _files(listing: Listing) -> Iterator[PlannedFile]:
    missing = set(missing_files(listing))
    for file in listing.files:
        yield PlannedFile(listing.repo.repo_id, file.path, file.num_bytes, file in missing)


def _footprint(listings: list[Listing]) -> Footprint | None:
    """Memory of a target, with a head if there is one; None for a head alone."""
    if not listings:
        return None
    first, *others = listings
    if first.repo.tensor_prefix is not None or is_head(first.config):
        return None
    is_v4 = holds_own_head(first.config)
    footprint = of_listing(first.config, first.weight_bytes, is_whole_v4=is_v4)
    for each in others:
        values = stored_values(each.config, each.weight_bytes)
        footprint = footprint.plus_head(values, cache_values(each.config))
    return footprint


def _plan_wheel(pair: Pair, wheel: WheelMember) -> PullPlan:
    is_missing = store.target_folder(pair) is None or store.is_outdated(pair)
    file = PlannedFile("package index", wheel.filename, wheel.num_bytes, is_missing)
    return _plan(pair.name, (file,), home(), wheel_disk_needed(pair, wheel), pair_footprint(pair))
