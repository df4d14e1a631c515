"""Resolves a user's name for a model: a pair, a family, a folder, a GGUF file or a hub id."""

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from dspark import hub
from dspark.config import PairChoice, RuntimeConfig
from dspark.errors import InputError, UnknownNameError
from dspark.events import Decided
from dspark.hub.catalog.find import FAMILIES

Settling = Generator[Decided, None, PairChoice]


def settle(choice: PairChoice, runtime: RuntimeConfig | None = None) -> Settling:
    """The pair, or the target and head, that the names mean; yields each decision.
    `runtime` is where it will run; None: any device.

    Raises UnknownNameError for an unknown name, MemoryFullError for a pair that cannot fit.
    """
    name = choice.pair
    if choice.target is not None:
        return choice
    if name in FAMILIES or hub.known_pair(name) is not None:
        return (yield from _usable(choice, name, runtime))
    check_spelling(name)
    if choice.draft is None and (pair := hub.pair_of_target(name)) is not None:
        yield Decided(f"{name} is the target of the pair {pair.name}, whose head drafts")
        return (yield from _usable(choice, pair.name, runtime))
    if Path(name).expanduser().exists():
        return (yield from _local(choice))
    if hub.is_repo_id(name):
        return (yield from _published(choice))
    return replace(choice, pair=hub.find_pair(name).name)  # raises, with the nearest names


def _usable(choice: PairChoice, name: str, runtime: RuntimeConfig | None) -> Settling:
    """A known pair or family; raises MemoryFullError if it does not fit where it will run."""
    pick = hub.choose_pair(name, runtime)
    if pick.reason:
        yield Decided(pick.reason)
    if (pair := hub.known_pair(pick.name)) is not None:
        hub.check_memory(pair, runtime)
        if hub.is_outdated(pair) and hub.needs_download(pair):
            yield Decided(
                f"{pair.name} was stored by an earlier version of dspark and runs slowly: "
                f"dspark pull {pair.name} brings it up to date"
            )
    return replace(choice, pair=pick.name)


def _local(choice: PairChoice) -> Settling:
    folder = Path(choice.pair).expanduser()
    if not folder.is_dir():
        if folder.suffix != ".gguf":
            raise InputError(
                f"{choice.pair} is a file", "Give the folder of a model, or a GGUF file."
            )
        return (yield from _with_head(choice, has_head=False))
    if hub.is_head_folder(folder):
        raise _is_head(choice.pair)
    return (yield from _with_head(choice, has_head=hub.brings_head(folder)))


def _published(choice: PairChoice) -> Settling:
    if (folder := hub.kept_folder(choice.pair)) is not None:
        is_head, has_head = hub.is_head_folder(folder), hub.brings_head(folder)
    else:
        repo = hub.look_up(choice.pair)
        is_head, has_head = repo.is_head, repo.brings_head
    if is_head:
        raise _is_head(choice.pair)
    return replace((yield from _with_head(choice, has_head=has_head)), target=choice.pair)


def _is_head(name: str) -> InputError:
    return InputError(
        f"{name} is a head, which drafts for a target",
        f"Name both: --target TARGET --draft {name}.",
    )


def _with_head(choice: PairChoice, *, has_head: bool) -> Settling:
    """The target's own head, or none, unless the user chose one."""
    name = choice.pair
    if choice.draft is not None:
        return choice
    if has_head:
        return replace(choice, draft=name)
    yield Decided(
        f"no head is known for {name}: decoding without drafts (--draft lookup drafts from "
        f"earlier text; dspark graft {name} attaches or trains a head)"
    )
    return choice


def check_known(name: str) -> None:
    """Raises UnknownNameError for a name that is neither a pair, a local file nor a hub id."""
    check_spelling(name)
    is_here = name in FAMILIES or Path(name).expanduser().exists()
    if not (is_here or hub.is_repo_id(name)):
        hub.find_pair(name)


def check_spelling(name: str) -> None:
    """Raises UnknownNameError for an empty name, or a prompt in place of a pair."""
    if any(character.isspace() for character in name) and not Path(name).expanduser().exists():
        raise UnknownNameError(
            f"no pair is called {name!r}", 'A prompt comes after the pair: dspark chat PAIR "..."'
        )
    if not name:
        raise UnknownNameError("no pair has an empty name", "See dspark list for the known pairs.")
