"""The user's own pairs, in the store's pairs.json: a name, a target and perhaps a head."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from dspark.atomic import replacing
from dspark.errors import CheckpointError, InputError, UnknownNameError
from dspark.hub.catalog import find
from dspark.hub.catalog.pairs import (
    HubRepo,
    LocalFolder,
    OtherPair,
    Pair,
    TargetFacts,
)
from dspark.hub.paths import home

NAME = re.compile(r"[A-Za-z0-9][\w.:-]*")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def register(
    name: str,
    target: str,
    draft: str | None,
    *,
    description: str = "",
    facts: TargetFacts | None = None,
    replace: bool = False,
) -> Pair:
    """Keep a pair under a name. Target and head: a folder, a hub id, or the name of a known pair.

    Raises InputError if the name is taken, unless by the user's own pair and with `replace`.
    """
    _check_name(name)
    entry = {
        "target": _absolute(target),
        "draft": None if draft is None else _absolute(draft),
        "description": description,
        "facts": None if facts is None else {f: getattr(facts, f) for f in facts.__slots__},
    }
    pair = _pair(name, entry)
    with _changing() as entries:
        if name in entries and not replace:
            raise InputError(f"a pair named {name} already exists", f"Remove it: dspark rm {name}.")
        entries[name] = entry
    return pair


def unregister(name: str) -> None:
    """Forget the name; the files stay where they are."""
    with _changing() as entries:
        if name not in entries:
            raise UnknownNameError(f"none of your own pairs is called {name!r}", "See dspark list.")
        del entries[name]


def registered_pairs() -> dict[str, Pair]:
    return {name: _pair(name, entry) for name, entry in _read().items()}


def registered_as(target: str, draft: str | None) -> str | None:
    """The name under which a pair is kept, if it is."""
    sources = _source(_absolute(target)), None if draft is None else _source(_absolute(draft))
    pairs = registered_pairs().items()
    return next((name for name, pair in pairs if (pair.target, pair.draft) == sources), None)


def _pairs_file() -> Path:
    return home() / "pairs.json"


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot be the name of a pair", "Use letters, digits, and . _ : - between."
        )
    if name in find.FAMILIES or find.find_shipped(name) is not None:
        raise InputError(f"{name} is one of dspark's own pairs", "Choose another name.")


def _absolute(text: str) -> str:
    path = Path(text).expanduser()
    return str(path.resolve()) if path.is_dir() and find.find_shipped(text) is None else text


def _source(text: str) -> LocalFolder | HubRepo | OtherPair:
    if find.find_shipped(text) is not None:
        return OtherPair(text)
    if Path(text).is_absolute():
        return LocalFolder(Path(text))
    if HUB_ID.fullmatch(text):
        return HubRepo(text)
    raise UnknownNameError(
        f"{text!r} is not a folder, a Hugging Face id or a known pair", "Check the path."
    )


def _pair(name: str, entry: Mapping[str, Any]) -> Pair:
    try:
        draft, facts = entry["draft"], entry.get("facts")
        return Pair(
            name=name,
            description=entry["description"] or _description(entry["target"], draft),
            licence=None,
            target=_source(entry["target"]),
            draft=None if draft is None else _source(draft),
            num_parameters=None,
            target_num_bytes=None,
            origins={"target": "registered on this machine"},
            facts=None if facts is None else TargetFacts(**facts),
        )
    except (KeyError, TypeError) as error:
        raise _broken(f"its entry {name} lacks or has a wrong {error}") from error


def _description(target: str, draft: str | None) -> str:
    if draft is None:
        return f"Your own name for {_last_part(target)}."
    return f"Your own pair: {_last_part(target)} with the head {_last_part(draft)}."


def _last_part(source: str) -> str:
    return Path(source).name if Path(source).is_absolute() else source


def _read() -> dict[str, Any]:
    try:
        entries = json.loads(_pairs_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _broken(str(error)) from error
    if not isinstance(entries, dict):
        raise _broken("it is not a JSON object")
    return entries


def _broken(reason: str) -> CheckpointError:
    return CheckpointError(
        f"{_pairs_file()} cannot be read ({reason})",
        "Fix or remove it; it lists your own pairs.",
    )


@contextmanager
def _changing() -> Iterator[dict[str, Any]]:
    """The entries, to be changed in place; written if the block ends without an error."""
    path = _pairs_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name("pairs.lock")):
        entries = _read()
        yield entries
        text = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
