"""Names → files on disk: the known pairs, the store that holds them, how they get there."""

from dspark.hub.families import choose_pair
from dspark.hub.fetch import disk_needed, download_bytes, fetch, may_lack
from dspark.hub.fit import check_memory
from dspark.hub.names import find_pair, known_pair, known_pairs
from dspark.hub.pairs import Pair, PairFiles
from dspark.hub.place import home
from dspark.hub.plan import PullPlan, plan_pull
from dspark.hub.published import (
    brings_head,
    fetch_published,
    is_head_folder,
    is_repo_id,
    kept_folder,
    look_up,
    pair_of_target,
)
from dspark.hub.registered import register, registered_pairs, unregister
from dspark.hub.registry import PAIRS, released_heads
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
    "is_repo_id",
    "kept_folder",
    "known_pair",
    "known_pairs",
    "locate",
    "look_up",
    "may_lack",
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
