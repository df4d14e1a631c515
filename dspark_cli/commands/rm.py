"""`dspark rm`: removes a pair from the local store."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from dspark.errors import InputError
from dspark_cli import options
from dspark_cli.naming import refuse_path
from dspark_cli.output.facts import print_json, size_text

if TYPE_CHECKING:
    from dspark.hub import Pair

EXAMPLES = ("dspark rm qwen3-4b", "dspark rm qwen3-4b --yes")
FROM_CACHE = " from the Hugging Face cache, which other programs use too"
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def rm(
    pair: options.RequiredPair = None,
    pair_option: options.PairOption = None,
    yes: Yes = False,
    as_json: options.Json = False,
) -> None:
    """Remove a pair from the local store. Files that dspark ships and your own folders are kept."""
    from dspark import hub
    from dspark.hub.settle import check_spelling

    name = options.needed_pair(pair, pair_option, "rm")
    check_spelling(name)
    refuse_path(name, "rm")
    if hub.is_repo_id(name):
        _remove_repo(name, yes, as_json)
        return
    known = hub.find_pair(name)
    is_own = known.name in hub.registered_pairs()
    size = hub.removable_bytes(known)
    must_ask = bool(size or is_own) and not yes
    is_kept = must_ask and not _agreed(_question(known, size, is_own), known.name)
    freed = 0 if is_kept else hub.remove(known.name)
    _tell(known.name, freed, is_own=is_own, is_kept=is_kept, as_json=as_json)


def _remove_repo(repo_id: str, yes: bool, as_json: bool) -> None:
    """A repository fetched by its id, which has no pair name."""
    from dspark import hub
    from dspark.hub.catalog.pairs import HubRepo
    from dspark.hub.sources.hf_cache import repo_bytes

    size = repo_bytes(HubRepo(repo_id))
    question = f"Remove {repo_id} ({size_text(size)}){FROM_CACHE}?"
    is_kept = bool(size) and not yes and not _agreed(question, repo_id)
    freed = 0 if is_kept else hub.remove_repo(repo_id)
    _tell(repo_id, freed, is_own=False, is_kept=is_kept, as_json=as_json)


def _tell(name: str, freed: int, *, is_own: bool, is_kept: bool, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "freed_bytes": freed, "kept": is_kept})
    elif is_kept:
        print(f"{name} is kept")
    elif is_own:
        print(f"{name} is forgotten; its files stay where they are")
    else:
        print(f"{name}: {size_text(freed)} freed" if freed else f"{name} is not on disk")


def _question(pair: "Pair", size: int, is_own: bool) -> str:
    from dspark.hub.catalog.pairs import HubRepo

    if is_own:
        return f"Forget {pair.name}?"
    where = FROM_CACHE if isinstance(pair.target, HubRepo) else ""
    return f"Remove {pair.name} ({size_text(size)}){where}?"


def _agreed(question: str, name: str) -> bool:
    if not sys.stdin.isatty():
        raise InputError(
            f"rm asks for confirmation to remove {name}, and stdin is not a terminal",
            "Add --yes to remove without asking.",
        )
    return typer.confirm(question, err=True)
