"""What a prompt may go on with: commands, their arguments, and paths behind an @."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

from dspark.chat.commands import COMMANDS
from dspark.chat.settings import DEFAULT, SETTINGS
from dspark.config import Schedule

MOST_SCANNED, MOST_OFFERED = 10_000, 100
_AT_PATH = re.compile(r'(?:^|\s)@(?:"([^"\n]*)|([^\s"`]*))$')
_MODES = tuple(mode for mode in get_args(Schedule) if mode != "threshold")
# Of a command, by what is behind it already.
Arguments = Mapping[str, Callable[[], Iterable[str]]]


@dataclass(frozen=True, slots=True)
class Completion:
    """`text` takes the place of the last `replaced` characters before the cursor."""

    text: str
    replaced: int
    meaning: str = ""


def completions(before: str, arguments: Arguments) -> Sequence[Completion]:
    """For the text before the cursor. A single one that stands there already is none."""
    if (match := _AT_PATH.search(before)) is not None:
        found = _paths(match[1] if match[1] is not None else match[2], is_quoted=match[2] is None)
    elif before.startswith("/") and "\n" not in before:
        found = _of_command(before, arguments)
    else:
        found = []
    is_there = len(found) == 1 and before.endswith(found[0].text.rstrip())
    return [] if is_there else found[:MOST_OFFERED]


def _of_command(before: str, arguments: Arguments) -> list[Completion]:
    name, space, begun = before.partition(" ")
    if not space:
        return [
            Completion(f"{each} " if usage.argument else each, len(before), usage.meaning)
            for each, usage in COMMANDS.items()
            if each.startswith(name.lower())
        ]
    if name.lower() == "/set":
        return _of_set(begun)
    known = arguments.get(name.lower(), lambda: ())()
    begins = [each for each in known if each.lower().startswith(begun.lower())]
    return [Completion(each, len(begun)) for each in begins]


def _of_set(begun: str) -> list[Completion]:
    setting, space, value = begun.partition(" ")
    if not space:
        return [
            Completion(f"{name} ", len(begun), each.values)
            for name, each in SETTINGS.items()
            if name.startswith(setting.lower())
        ]
    values = (*_MODES, DEFAULT) if setting.lower() == "schedule" else (DEFAULT,)
    known = values if setting.lower() in SETTINGS else ()
    return [
        Completion(each, len(value)) for each in known if each.startswith(value) and value != each
    ]


def _paths(begun: str, *, is_quoted: bool) -> list[Completion]:
    """Files and folders that begin like this; hidden ones if a dot is typed."""
    folder, _, start = begun.rpartition("/")
    at = f"{folder}/" if folder or begun.startswith("/") else ""
    try:
        with os.scandir(Path(at or ".").expanduser()) as scan:
            entries = [(each.name, each.is_dir()) for each in islice(scan, MOST_SCANNED)]
    except (OSError, RuntimeError, ValueError):
        return []
    fitting = sorted(
        (not is_folder, name)
        for name, is_folder in entries
        if name.lower().startswith(start.lower()) and name.startswith(".") <= start.startswith(".")
    )
    num_replaced = len(begun) + (2 if is_quoted else 1)
    return [_path(f"{at}{name}", is_file, num_replaced) for is_file, name in fitting]


def _path(path: str, is_file: bool, num_replaced: int) -> Completion:
    """A folder is left open for what is in it."""
    has_space = bool(re.search(r"\s", path))
    text = f'@"{path}' if has_space else f"@{path}"
    end = ('" ' if has_space else " ") if is_file else "/"
    return Completion(text + end, num_replaced)
