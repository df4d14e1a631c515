"""Names → files on disk: the known pairs, the store that holds them, how they get there."""

from dspark.hub.fetch import disk_needed, fetch
from dspark.hub.pairs import PAIRS, Pair, PairFiles, find_pair
from dspark.hub.resolve import resolve_draft, resolve_target
from dspark.hub.store import draft_folder, folder_bytes, home, locate, remove, stored_bytes

__all__ = [
    "PAIRS",
    "Pair",
    "PairFiles",
    "disk_needed",
    "draft_folder",
    "fetch",
    "find_pair",
    "folder_bytes",
    "home",
    "locate",
    "remove",
    "resolve_draft",
    "resolve_target",
    "stored_bytes",
]
