"""Files in a prompt: `@path` puts the file behind the prompt, as a fenced block with its name."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dspark.errors import InputError

MOST_BYTES = 256 * 1024
# At the beginning of a word, so that an address is none; in quotes with spaces.
_NAMED = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|([^\s"`@(]+))(?![^\s.,;:!?)])')
_PUNCTUATION = ".,;:!?)"
_PATH = re.compile(r"[\w./~+-]*[./][\w./~+-]*")
_BLOCK = re.compile(
    r"\n\n(?P<name>[^\n]+):\n(?P<fence>`{3,})[^\n`]*\n(?P<text>.*?)\n(?P=fence)(?=\n\n|\Z)", re.S
)


@dataclass(frozen=True, slots=True)
class Attached:
    name: str
    num_bytes: int

    @property
    def words(self) -> str:
        size = f"{self.num_bytes:,} bytes"
        return (
            f"{self.name}, {size if self.num_bytes < 1024 else f'{self.num_bytes / 1024:.1f} KB'}"
        )


def attach(prompt: str) -> str:
    """With the files that it names, each once. Raises InputError; a word like `@property` that
    is no file here is text."""
    return prompt + "".join(_block(name) for name in dict.fromkeys(_names(prompt)))


def detach(prompt: str) -> tuple[str, list[Attached]]:
    """The prompt as it was typed, and the files that `attach` put behind it."""
    first = next((each for each in _BLOCK.finditer(prompt) if _is_attached(prompt, each)), None)
    if first is None:
        return prompt, []
    typed, attached, end = prompt[: first.start()], [], first.start()
    named = {name for name in _words(typed)}
    while (block := _BLOCK.match(prompt, end)) and block["name"] in named:
        attached.append(Attached(block["name"], len(block["text"].encode())))
        end = block.end()
    return (typed, attached) if end == len(prompt) else (prompt, [])


def _is_attached(prompt: str, block: re.Match[str]) -> bool:
    return block["name"] in _words(prompt[: block.start()])


def _words(prompt: str) -> Iterator[str]:
    """What follows an @, with and without the punctuation behind it."""
    for match in _NAMED.finditer(prompt):
        name = match[1] or match[2]
        yield name
        if match[2]:
            yield name.rstrip(_PUNCTUATION)


def _names(prompt: str) -> Iterator[str]:
    for match in _NAMED.finditer(prompt):
        name = match[1] or match[2]
        if match[2] and not _exists(name):
            name = name.rstrip(_PUNCTUATION)
        if match[1] or _PATH.fullmatch(name) or (name and _exists(name)):
            yield name


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a NUL
        return False


def _block(name: str) -> str:
    text = _read(name).removesuffix("\n")
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"\n\n{name}:\n{fence}{Path(name).suffix[1:]}\n{text}\n{fence}"


def _read(name: str) -> str:
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            raise InputError(f"{name} is a folder", "Name a file in it.")
        if not path.is_file():
            raise InputError(f"there is no file {name}", "Put `@…` in backticks if it is text.")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name} could not be read: {reason}") from None
    if len(data) > MOST_BYTES:
        raise InputError(f"{name} is larger than {MOST_BYTES // 1024} KB", "Paste a part of it.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(f"{name} is not text", "Only text files in UTF-8 are attached.")
    return text.replace("\r\n", "\n")
