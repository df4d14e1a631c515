"""Names for a model, with their resolved meaning reported on stderr."""

from pathlib import Path

from dspark.config import PairChoice, RuntimeConfig
from dspark.errors import InputError
from dspark.progress import follow
from dspark_cli.output.tables import say


def settled(choice: PairChoice, runtime: RuntimeConfig | None = None) -> PairChoice:
    """As hub.settle; the decisions are printed on stderr."""
    from dspark.hub.settle import settle

    return follow(settle(choice, runtime), lambda decided: say(decided.text))


def refuse_path(name: str, command: str) -> None:
    """Raises InputError for a path, since no command fetches or removes the user's own files."""
    from dspark import hub

    if hub.known_pair(name) is None and name and Path(name).expanduser().exists():
        raise InputError(
            f"{name} is a path, and dspark {command} takes pairs and Hugging Face ids",
            f"A path needs no {command}; use it directly: dspark chat {name}.",
        )


def chosen_name(name: str, runtime: RuntimeConfig | None = None) -> str:
    """The pair that a family's name stands for on this machine, reported on stderr; other names are
    returned unchanged."""
    from dspark import hub

    choice = hub.choose_pair(name, runtime)
    if choice.reason:
        say(choice.reason)
    return choice.name
