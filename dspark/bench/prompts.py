"""Prompt sets: one JSON object per line, {"category": "chat", "prompt": "..."} or another common
layout."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from dspark.errors import InputError
from dspark.records import json_records, prompt_of, read_bytes

FORMAT_HINT = 'Each line is an object like {"category": "chat", "prompt": "Hello"}.'


@dataclass(frozen=True, slots=True)
class PromptText:
    category: str
    text: str


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """A prompt as the model sees it."""

    category: str
    token_ids: tuple[int, ...]


def own_prompts() -> list[PromptText]:
    """The prompt set that ships with dspark."""
    resource = files("dspark.assets") / "prompts" / "bench.jsonl"
    return _prompts(
        json_records(Path("bench.jsonl"), resource.read_bytes()), "bench.jsonl", "other"
    )


def read_prompts(path: Path) -> list[PromptText]:
    """A line without a category gets the file's name. Raises InputError."""
    raw = read_bytes(path, "--prompts")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(
            f"{path} is not UTF-8", "Convert it first, for example with iconv."
        ) from None
    return _prompts(json_records(path, raw), str(path), Path(path.name.removesuffix(".gz")).stem)


def _prompts(
    records: Iterable[tuple[str, Mapping[str, Any] | None]], name: str, category: str
) -> list[PromptText]:
    prompts = []
    for place, record in records:
        if record is None:
            raise InputError(f"{place} is not a JSON object", FORMAT_HINT)
        prompt = prompt_of(record)
        if prompt is None:
            raise InputError(f"{place} has no prompt", FORMAT_HINT)
        prompts.append(PromptText(str(record.get("category") or category), prompt))
    if not prompts:
        raise InputError(f"{name} holds no prompt", FORMAT_HINT)
    return prompts
