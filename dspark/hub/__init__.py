"""Names → files on disk: the known pairs, the local store, and downloads.

Everything below is imported when it is first used: decoding needs nothing of what downloads.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspark.hub.catalog.find import PAIRS, find_pair, known_pair, known_pairs, released_heads
    from dspark.hub.catalog.pairs import Pair, PairFiles
    from dspark.hub.catalog.user_pairs import register, registered_pairs, unregister
    from dspark.hub.choose import choose_pair
    from dspark.hub.inspect_repo import (
        brings_head,
        fetch_published,
        is_head_folder,
        is_repo_id,
        kept_folder,
        look_up,
        pair_of_target,
    )
    from dspark.hub.memory_fit import check_memory
    from dspark.hub.paths import home
    from dspark.hub.pull import (
        disk_needed,
        download_bytes,
        fetch,
        is_outdated,
        may_lack,
        needs_download,
    )
    from dspark.hub.pull_plan import PullPlan, plan_pull
    from dspark.hub.resolve import fetch_missing, resolve_draft, resolve_target
    from dspark.hub.store import (
        draft_folder,
        folder_bytes,
        locate,
        removable_bytes,
        remove,
        remove_repo,
        stored_bytes,
        target_folder,
    )

__all__ = [
    "PAIRS",
    "Pair",
    "PairFiles",
    "PullPlan",
    "brings_head",
    "check_memory",
    "choose_pair",
    "disk_needed",
    "download_bytes",
    "draft_folder",
    "fetch",
    "fetch_missing",
    "fetch_published",
    "find_pair",
    "folder_bytes",
    "home",
    "is_head_folder",
    "is_outdated",
    "is_repo_id",
    "kept_folder",
    "known_pair",
    "known_pairs",
    "locate",
    "look_up",
    "may_lack",
    "needs_download",
    "pair_of_target",
    "plan_pull",
    "register",
    "registered_pairs",
    "released_heads",
    "removable_bytes",
    "remove",
    "remove_repo",
    "resolve_draft",
    "resolve_target",
    "stored_bytes",
    "target_folder",
    "unregister",
]
_HOMES = {
    "catalog.find": ("PAIRS", "find_pair", "known_pair", "known_pairs", "released_heads"),
    "catalog.pairs": ("Pair", "PairFiles"),
    "catalog.user_pairs": ("register", "registered_pairs", "unregister"),
    "choose": ("choose_pair",),
    "inspect_repo": (
        "brings_head",
        "fetch_published",
        "is_head_folder",
        "is_repo_id",
        "kept_folder",
        "look_up",
        "pair_of_target",
    ),
    "memory_fit": ("check_memory",),
    "paths": ("home",),
    "pull": ("disk_needed", "download_bytes", "fetch", "is_outdated", "may_lack", "needs_download"),
    "pull_plan": ("PullPlan", "plan_pull"),
    "resolve": ("fetch_missing", "resolve_draft", "resolve_target"),
    "store": (
        "draft_folder",
        "folder_bytes",
        "locate",
        "removable_bytes",
        "remove",
        "remove_repo",
        "stored_bytes",
        "target_folder",
    ),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"dspark.hub.{home}"), name)
    raise AttributeError(f"module 'dspark.hub' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
