"""From a name to a pair: a shipped one, a user's, or the best of a family."""

import difflib
from pathlib import Path

from dspark.errors import UnknownNameError
from dspark.hub.catalog import user_pairs
from dspark.hub.catalog.pairs import HubRepo, Pair
from dspark.hub.catalog.read_catalog import read_catalog

FILES = (".gguf", ".safetensors", ".json")
CATALOG = read_catalog(Path(__file__).with_name("pairs.toml").read_text(encoding="utf-8"))
PAIRS, ALIASES, FAMILIES = CATALOG.pairs, CATALOG.aliases, CATALOG.families


def known_pairs() -> dict[str, Pair]:
    """All pairs with a name, the user's own last."""
    return {**PAIRS, **user_pairs.registered_pairs()}


def known_pair(name: str) -> Pair | None:
    return find_shipped(name) or user_pairs.registered_pairs().get(name)


def find_pair(name: str) -> Pair:
    """The pair of that name; raises UnknownNameError with the nearest one."""
    if pair := known_pair(name):
        return pair
    if _is_path(name) and not Path(name).expanduser().exists():
        kind = "file" if Path(name).suffix in FILES else "folder"
        raise UnknownNameError(f"there is no {kind} {name}", "Check the path.")
    nearest = difflib.get_close_matches(name.lower(), known_pairs(), n=1, cutoff=0.5)
    hint = f"Did you mean {nearest[0]}?" if nearest else "See dspark list for the known pairs."
    raise UnknownNameError(f"no pair is called {name!r}", hint)


def _is_path(name: str) -> bool:
    """Whether it can only be a path: a slash at an end, or more slashes than an id has."""
    is_file = Path(name).suffix in FILES
    return is_file or name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1


def find_shipped(name: str) -> Pair | None:
    """The built-in pair of that name or alias."""
    return PAIRS.get(ALIASES.get(name, name))


def released_heads() -> tuple[Pair, ...]:
    """Every pair with a downloadable head for a target of this shape, best first."""
    return tuple(pair for pair in PAIRS.values() if isinstance(pair.draft, HubRepo))
