"""Sources of prompts: files, folders, Hugging Face data sets, the target itself."""

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from dspark.config import GraftConfig
from dspark.errors import InputError
from dspark.extras import install_command
from dspark.plural import counted
from dspark.records import json_records, prompt_of, read_bytes, text_lines, usable

SUFFIXES = (".jsonl", ".txt", ".jsonl.gz", ".txt.gz")
PASSES_OVER_SELF_WRITTEN = 4
RECORD_HINT = (
    'Records hold "prompt", "messages", "conversations", "turns", "instruction" or "text"; in a '
    ".txt file prompts are separated by an empty line."
)


@dataclass(frozen=True, slots=True)
class PromptList:
    """Prompts in the order read, without duplicates; `skipped` names the lines left out.

    `origins` has each prompt's file or data set.
    """

    prompts: tuple[str, ...]
    skipped: tuple[str, ...]
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        if not self.skipped:
            return ()
        names = ", ".join(self.skipped[:3]) + (" ..." if len(self.skipped) > 3 else "")
        return (f"{counted(len(self.skipped), 'line')} without a prompt skipped: {names}",)


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Files, folders and data sets of prompts, and the number that the target writes itself.

    `self_reason` explains that number if the user did not give it.
    """

    files: tuple[Path, ...] = ()
    num_self_written: int = 0
    datasets: tuple[str, ...] = ()
    is_strict: bool = False
    self_reason: str = ""

    @classmethod
    def parse(
        cls,
        arguments: Sequence[str],
        config: GraftConfig = GraftConfig(),
        *,
        is_strict: bool = False,
    ) -> "PromptSource":
        """Each argument is a file, a folder, hf:..., self or self:N. Raises InputError."""
        files = [Path(a) for a in arguments if a != "self" and not a.startswith(("self:", "hf:"))]
        datasets = [a for a in arguments if a.startswith("hf:")]
        for name in datasets:
            _dataset_parts(name)
        num_self_written = sum(_count(a) for a in arguments if a.startswith("self:"))
        reason = ""
        if "self" in arguments:
            num_self_written += _needed(config)
            reason = (
                f"{counted(config.steps, 'step')} of {config.batch_size} see each about "
                f"{PASSES_OVER_SELF_WRITTEN} times"
            )
        return cls(tuple(files), num_self_written, tuple(datasets), is_strict, reason)

    @property
    def is_empty(self) -> bool:
        return not (self.files or self.datasets or self.num_self_written)

    def read(self) -> PromptList:
        """All but the self-written ones. Raises InputError; strictly, at the first broken line."""
        if not (self.files or self.datasets):
            return PromptList((), ())
        origins: dict[str, str] = {}
        skipped = []
        for origin, place, prompt in self._records():
            if prompt is not None:
                origins.setdefault(prompt, origin)
            elif self.is_strict:
                raise InputError(
                    f"{place} has no prompt", f"Fix it, or leave out --strict. {RECORD_HINT}"
                )
            else:
                skipped.append(place)
        if not origins:
            names = ", ".join([*map(str, self.files), *self.datasets])
            raise InputError(f"no prompt in {names}", RECORD_HINT)
        return PromptList(tuple(origins), tuple(skipped), origins)

    @property
    def names(self) -> tuple[str, ...]:
        """For a model card: without the folders of this machine."""
        written = (
            (f"{self.num_self_written} written by the target",) if self.num_self_written else ()
        )
        return (*(path.name for path in self.files), *self.datasets, *written)

    def _records(self) -> Iterator[tuple[str, str, str | None]]:
        for path in self.files:
            for file in _files_below(path):
                origin = Path(file.name.removesuffix(".gz")).stem
                yield from ((origin, place, prompt) for place, prompt in _prompts_in(file))
        for name in self.datasets:
            for number, row in enumerate(_dataset_rows(name)):
                yield name.removeprefix("hf:"), f"{name} row {number}", prompt_of(row)


def _count(argument: str) -> int:
    count = argument.removeprefix("self:")
    if not count.isdecimal() or not int(count):
        raise InputError(f"{argument!r} is not self:N", "Give a number, as in self:500, or self.")
    return int(count)


def _needed(config: GraftConfig) -> int:
    return -(-config.steps * config.batch_size // PASSES_OVER_SELF_WRITTEN) + config.eval_prompts


def _files_below(path: Path) -> list[Path]:
    """The file itself, or the files in a folder at any depth."""
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES) and p.is_file())
    if not files:
        raise InputError(f"no *.jsonl or *.txt below {path}", "Check the path given to --prompts.")
    return files


def _prompts_in(path: Path) -> Iterator[tuple[str, str | None]]:
    """Each with its place; None for a record without a prompt."""
    raw = read_bytes(path, "--prompts")
    if path.name.endswith((".txt", ".txt.gz")):
        yield from _paragraphs(path, raw)
    else:
        yield from ((place, prompt_of(record)) for place, record in json_records(path, raw))


def _paragraphs(path: Path, raw: bytes) -> Iterator[tuple[str, str | None]]:
    """Each with the line in which it begins."""
    start, paragraph = 1, list[str]()
    for number, line in enumerate([*text_lines(raw), ""], start=1):
        if line.strip():
            start = start if paragraph else number
            paragraph.append(line.rstrip())
        elif paragraph:
            yield f"{path}:{start}", usable("\n".join(paragraph).strip())
            paragraph = []


def _dataset_parts(argument: str) -> tuple[str, str | None, str]:
    """hf:owner/name[/configuration][:split] -> owner/name, configuration, split."""
    path, _, split = argument.removeprefix("hf:").partition(":")
    parts = path.split("/")
    if not all(parts) or len(parts) not in (2, 3):
        raise InputError(
            f"{argument!r} is not a data set",
            "For example hf:owner/name, hf:owner/name:test or hf:owner/name/configuration:test.",
        )
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or "train"


def _dataset_rows(argument: str) -> Iterable[Mapping[str, Any]]:
    """Data only: since version 4 the library does not run a data set's code."""
    name, configuration, split = _dataset_parts(argument)
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise InputError(
            f"{argument} needs the library datasets",
            "Install it: " + install_command("datasets"),
        ) from error
    try:
        rows: Iterable[Mapping[str, Any]] = library.load_dataset(name, configuration, split=split)
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{argument} cannot be read ({reason})", "Check its name, its split and the network."
        ) from error
    return rows
