"""Names for a model: a pair, a family, a folder, a GGUF file or a Hugging Face id."""

from dataclasses import dataclass, replace
from pathlib import Path

from dspark.config import RuntimeConfig
from dspark.errors import InputError, UnknownNameError
from dspark_cli.output.answer import say


@dataclass(frozen=True, slots=True)
class PairChoice:
    """A pair by name; paths or hub ids may replace its target and head."""

    pair: str
    target: str | None = None
    draft: str | None = None


def settled(choice: PairChoice, runtime: RuntimeConfig | None = None) -> PairChoice:
    """The pair, or the target and head, that the names mean; the decision is printed on stderr.
    `runtime` is where it will run; None: any device.

    Raises UnknownNameError for an unknown name, MemoryFullError for a pair that cannot fit.
    """
    from dspark import hub
    from dspark.hub.catalog.find import FAMILIES

    name = choice.pair
    if choice.target is not None:
        return choice
    if name in FAMILIES or hub.known_pair(name) is not None:
        return replace(choice, pair=usable_name(name, runtime))
    check_spelling(name)
    if choice.draft is None and (pair := hub.pair_of_target(name)) is not None:
        say(f"{name} is the target of the pair {pair.name}, whose head drafts")
        return replace(choice, pair=usable_name(pair.name, runtime))
    if Path(name).expanduser().exists():
        return _local(choice)
    if hub.is_repo_id(name):
        return _published(choice)
    hub.find_pair(name)
    raise AssertionError("find_pair knows the name, or raises")


def _local(choice: PairChoice) -> PairChoice:
    from dspark import hub

    folder = Path(choice.pair).expanduser()
    if not folder.is_dir():
        if folder.suffix != ".gguf":
            raise InputError(
                f"{choice.pair} is a file", "Give the folder of a model, or a GGUF file."
            )
        return _with_head(choice, has_head=False)
    if hub.is_head_folder(folder):
        raise _is_head(choice.pair)
    return _with_head(choice, has_head=hub.brings_head(folder))


def _published(choice: PairChoice) -> PairChoice:
    from dspark import hub

    if (folder := hub.kept_folder(choice.pair)) is not None:
        is_head, has_head = hub.is_head_folder(folder), hub.brings_head(folder)
    else:
        found = hub.look_up(choice.pair)
        is_head, has_head = found.is_head, found.brings_head
    if is_head:
        raise _is_head(choice.pair)
    return replace(_with_head(choice, has_head=has_head), target=choice.pair)


def _is_head(name: str) -> InputError:
    return InputError(
        f"{name} is a head, which drafts for a target",
        f"Name both: --target TARGET --draft {name}.",
    )


def _with_head(choice: PairChoice, *, has_head: bool) -> PairChoice:
    """The target's own head, or none, unless the user chose one."""
    name = choice.pair
    if choice.draft is not None:
        return choice
    if has_head:
        return replace(choice, draft=name)
    say(
        f"no head is known for {name}: decoding without drafts (--draft lookup drafts from "
        f"earlier text; dspark graft {name} attaches or trains a head)"
    )
    return choice


def shown_name(model: str) -> str:
    """The user's name for it: a pair or an id in full, the last part of a path."""
    path = Path(model).expanduser()
    if not path.exists():
        return model
    return path.stem if path.is_file() else path.resolve().name


def check_known(name: str) -> None:
    """Raises UnknownNameError for a name that is neither a pair, a local file nor a hub id."""
    from dspark import hub
    from dspark.hub.catalog.find import FAMILIES

    check_spelling(name)
    is_here = name in FAMILIES or Path(name).expanduser().exists()
    if not (is_here or hub.is_repo_id(name)):
        hub.find_pair(name)


def refuse_path(name: str, command: str) -> None:
    """Raises InputError for a path, since no command fetches or removes the user's own files."""
    from dspark import hub

    if hub.known_pair(name) is None and name and Path(name).expanduser().exists():
        raise InputError(
            f"{name} is a path, and dspark {command} takes pairs and Hugging Face ids",
            f"A path needs no {command}; use it directly: dspark chat {name}.",
        )


def check_spelling(name: str) -> None:
    """Raises UnknownNameError for an empty name, or a prompt in place of a pair."""
    if any(character.isspace() for character in name) and not Path(name).expanduser().exists():
        raise UnknownNameError(
            f"no pair is called {name!r}", 'A prompt comes after the pair: dspark chat PAIR "..."'
        )
    if not name:
        raise UnknownNameError("no pair has an empty name", "See dspark list for the known pairs.")


def chosen_name(name: str, runtime: RuntimeConfig | None = None) -> str:
    """The pair that a family's name stands for on this machine, reported on stderr; other names are
    returned unchanged."""
    from dspark import hub

    choice = hub.choose_pair(name, runtime)
    if choice.reason:
        say(choice.reason)
    return choice.name


def usable_name(name: str, runtime: RuntimeConfig | None = None) -> str:
    """As chosen_name; raises MemoryFullError if the pair does not fit where it will run."""
    from dspark import hub

    name = chosen_name(name, runtime)
    if (pair := hub.known_pair(name)) is not None:
        hub.check_memory(pair, runtime)
    return name
