"""Names → files on disk: the known pairs, the store that holds them, how they get there."""

from dspark.hub.fetch import fetch
from dspark.hub.pairs import PAIRS, Pair, PairFiles, find_pair
from dspark.hub.resolve import resolve_draft, resolve_target
from dspark.hub.store import home, locate, remove, stored_bytes

__all__ = [
    "PAIRS",
    "Pair",
    "PairFiles",
    "fetch",
    "find_pair",
    "home",
    "locate",
    "remove",
    "resolve_draft",
    "resolve_target",
    "stored_bytes",
]
