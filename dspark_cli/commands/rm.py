"""`dspark rm`: take a pair out of the local store."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from dspark.errors import InputError
from dspark_cli import options
from dspark_cli.facts import print_json, size_text

if TYPE_CHECKING:
    from dspark.hub import Pair

EXAMPLES = ("dspark rm qwen3-4b", "dspark rm qwen3-4b --yes")
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def rm(
    pair: options.RequiredPair = None,
    pair_option: options.PairOption = None,
    yes: Yes = False,
    as_json: options.Json = False,
) -> None:
    """Remove a pair from the local store. What dspark ships and your own folders are kept."""
    from dspark import hub

    known = hub.find_pair(options.needed_pair(pair, pair_option, "rm"))
    is_own = known.name in hub.registered_pairs()
    size = hub.removable_bytes(known)
    is_kept = (
        bool(size or is_own) and not yes and not _agreed(_question(known, size, is_own), known)
    )
    freed = 0 if is_kept else hub.remove(known.name)
    if as_json:
        print_json({"name": known.name, "freed_bytes": freed, "kept": is_kept})
    else:
        print(_outcome(known, freed, is_own=is_own, is_kept=is_kept))


def _outcome(pair: "Pair", freed: int, *, is_own: bool, is_kept: bool) -> str:
    if is_kept:
        return f"{pair.name} is kept"
    if is_own:
        return f"{pair.name} is forgotten; its files stay where they are"
    return f"{pair.name}: {size_text(freed)} freed" if freed else f"{pair.name} is not on disk"


def _question(pair: "Pair", size: int, is_own: bool) -> str:
    from dspark.hub.pairs import HubRepo

    if is_own:
        return f"Forget {pair.name}?"
    is_shared = isinstance(pair.target, HubRepo)
    where = " from the Hugging Face cache, which other programs use too" if is_shared else ""
    return f"Remove {pair.name} ({size_text(size)}){where}?"


def _agreed(question: str, pair: "Pair") -> bool:
    if not sys.stdin.isatty():
        raise InputError(
            f"rm asks before it removes {pair.name}", "Add --yes where nobody can answer."
        )
    return typer.confirm(question, err=True)
