"""Reading untrusted files.

Nothing here executes a file's content; a file that is too large is refused before it is read.
"""

import json
import os
from pathlib import Path
from typing import Any

from dspark.errors import CheckpointError

LARGEST_JSON = 64 << 20  # bytes; the index of the largest known checkpoint has 15 MB


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object without duplicate keys, NaN or infinities."""
    try:
        if path.stat().st_size > LARGEST_JSON or not path.is_file():  # a pipe would never end
            raise CheckpointError(f"{path} is not a regular JSON file, or is too large")
        raw = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=without_duplicates,
            parse_constant=_refuse_constant,
        )
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} does not exist", "Give the folder that holds the model's files."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({one_line(error)})") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return raw


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key occurs twice")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def one_line(error: BaseException) -> str:
    """Its message, shortened to one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"


def inside(directory: Path, name: str) -> Path:
    """The file of that name in the folder; raises CheckpointError for a name that leaves it.

    A link may only lead out of it as in the Hugging Face cache: to a blob next to the snapshots.
    """
    path = directory / name
    if not name or name in (".", "..") or Path(name).name != name or "\0" in name:
        raise CheckpointError(f"{directory} names the file {name[:80]!r}, outside its own folder")
    home = directory.resolve()
    homes = [home, *(each.parent / "blobs" for each in home.parents if each.name == "snapshots")]
    real = Path(os.path.realpath(path))  # unlike resolve, accepts a link to itself
    if path.is_symlink() and not any(real.is_relative_to(each) for each in homes):
        raise CheckpointError(f"{path} is a link to {real}, outside its own folder")
    return path


def shown(name: str) -> str:
    """A name from a file, escaped and shortened for one line."""
    return " ".join(name.split())[:160]
