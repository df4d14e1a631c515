"""Records and prompts from files of other programs."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dspark.errors import InputError

GZIP = b"\x1f\x8b"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
TURNS = ("messages", "conversations", "conversation", "turns")
USER_ROLES = ("user", "human", "prompter")


def read_bytes(path: Path, option: str, *, unpacks: bool = True) -> bytes:
    """Content without a byte order mark, decompressed if it is gzip. Raises InputError."""
    check = f"Check the path given to {option}."
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no file {path}", check) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", check) from error
    if raw.startswith(GZIP):
        if not unpacks:
            raise InputError(f"{path} is compressed with gzip", "Decompress it first, with gunzip.")
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"{path} is a broken gzip file ({error})", "Download it again."
            ) from None
    if raw.startswith(UTF16) or b"\x00" in raw[:64]:
        raise InputError(
            f"{path} is not UTF-8 text, but probably UTF-16",
            "Convert it first, for example with iconv -f UTF-16 -t UTF-8.",
        )
    return raw.removeprefix(b"\xef\xbb\xbf")


def text_lines(raw: bytes) -> list[str]:
    """Bytes that are not UTF-8 become lone surrogates. Separators such as U+2028 do not end a
    line."""
    return [line.decode("utf-8", errors="surrogateescape") for line in raw.split(b"\n")]


def json_records(path: Path, raw: bytes) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each record with its place: one per line, or the items of one list. None for a broken one."""
    if raw.lstrip()[:1] == b"[" and (items := _parsed(raw)) is not None:
        for number, item in enumerate(items, start=1):
            record = {"prompt": item} if isinstance(item, str) else item
            yield f"{path}, record {number}", record if isinstance(record, dict) else None
        return
    for number, line in enumerate(text_lines(raw), start=1):
        if line.strip():
            yield f"{path}:{number}", parse_record(line)


def parse_record(line: str) -> dict[str, Any] | None:
    """None if the line is not a JSON object."""
    record = _parsed(line)
    return record if isinstance(record, dict) else None


def _parsed(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def prompt_of(record: Mapping[str, Any] | None) -> str | None:
    """The user's prompt in a record of any common layout; null fields count as missing."""
    given = {name: value for name, value in (record or {}).items() if value is not None}
    if "prompt" in given:
        prompt = given["prompt"]
        return _first_user_turn(prompt) if isinstance(prompt, list) else usable(prompt)
    for name in TURNS:
        if name in given:
            return _first_user_turn(given[name])
    if "instruction" in given:
        instruction, details = usable(given["instruction"]), usable(given.get("input"))
        return f"{instruction}\n\n{details}" if instruction and details else instruction
    return usable(given.get("text"))


def _first_user_turn(turns: Any) -> str | None:
    """Of messages by role, or of bare texts by turns, of which the first is the user's."""
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, str):
            return usable(turn)
        if isinstance(turn, dict) and turn.get("role", turn.get("from")) in USER_ROLES:
            return usable(_joined(turn.get("content", turn.get("value"))))
    return None


def _joined(content: Any) -> Any:
    """The text of a content list, such as of text and images."""
    if not isinstance(content, list):
        return content
    texts = (part.get("text") if isinstance(part, dict) else part for part in content)
    return "\n".join(text for text in texts if isinstance(text, str))


def usable(text: Any) -> str | None:
    """Text that is not empty and can be encoded in UTF-8."""
    if not isinstance(text, str) or not text.strip():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return text
