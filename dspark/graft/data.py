"""What a head is trained on: prompts, and the answers that the target itself wrote to them.

Answers live in a plain JSONL file, one object a line:
{"prompt_ids": [...], "answer_ids": [...], "prompt": "...", "answer": "..."}
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark.errors import InputError, StorageError


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt with the target's answer; the answer ends with the stop token if it was reached."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    prompt: str
    answer: str

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.prompt_ids + self.answer_ids


@dataclass(frozen=True, slots=True)
class PromptList:
    """Prompts in file order, without repetitions; `skipped` names the lines that were left out."""

    prompts: tuple[str, ...]
    skipped: tuple[str, ...]


def read_prompts(paths: Sequence[Path]) -> PromptList:
    """One {"prompt": ...} a line. Raises InputError where a file cannot be read or holds none."""
    prompts: dict[str, None] = {}
    skipped = []
    for path in paths:
        for number, line in _lines(path):
            prompt = _prompt_of(line)
            if prompt is None:
                skipped.append(f"{path}:{number}")
            else:
                prompts[prompt] = None
    if not prompts:
        raise InputError(
            f"no prompt in {', '.join(map(str, paths))}", 'Each line should be {"prompt": "..."}.'
        )
    return PromptList(tuple(prompts), tuple(skipped))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines but the empty ones; bytes that are not UTF-8 come as lone surrogates."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror})", "Check the path given to --prompts."
        ) from error
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip():
            yield number, line.decode("utf-8", errors="surrogateescape")


def _prompt_of(line: str) -> str | None:
    record = _parse(line)
    prompt = record.get("prompt") if record is not None else None
    if not isinstance(prompt, str) or not prompt.strip():
        return None
    return prompt if _is_encodable(prompt) else None


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


class AnswerFile:
    """Append-only, safe to stop at any moment: a torn last line is dropped when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Answered]:
        """All whole lines. Raises InputError naming a line that is broken before the last."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")
        answers = []
        for number, line in enumerate(lines[:-1], start=1):
            answer = _answered(line.decode("utf-8", errors="surrogateescape"))
            if answer is None:
                raise InputError(
                    f"{self.path}:{number} is not an answer", "Delete that line, or the whole file."
                )
            answers.append(answer)
        return answers

    def append(self, answers: Iterable[Answered]) -> Iterator[Answered]:
        """Write each answer as it comes, and pass it on. Raises StorageError on a full disk."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.truncate(self._whole_bytes())
                for answer in answers:
                    file.write((json.dumps(_record(answer), ensure_ascii=False) + "\n").encode())
                    file.flush()
                    yield answer
        except OSError as error:
            raise StorageError(
                f"could not write {self.path} ({error.strerror})", "Free some space and try again."
            ) from error

    def _whole_bytes(self) -> int:
        size = os.path.getsize(self.path)
        return self.path.read_bytes().rfind(b"\n") + 1 if size else 0


def _answered(line: str) -> Answered | None:
    record = _parse(line)
    if record is None:
        return None
    try:
        return Answered(
            prompt_ids=tuple(map(int, record["prompt_ids"])),
            answer_ids=tuple(map(int, record["answer_ids"])),
            prompt=str(record["prompt"]),
            answer=str(record["answer"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _record(answer: Answered) -> dict[str, Any]:
    return {
        "prompt_ids": list(answer.prompt_ids),
        "answer_ids": list(answer.answer_ids),
        "prompt": answer.prompt,
        "answer": answer.answer,
    }


@dataclass(frozen=True, slots=True)
class Split:
    """Held-out prompts are never trained on."""

    train: tuple[Answered, ...]
    held_out: tuple[Answered, ...]


def split(answers: Sequence[Answered], num_held_out: int) -> Split:
    """The same for the same answers in any order: held out are the prompts of smallest hash."""
    if len(answers) <= num_held_out:
        raise InputError(
            f"{len(answers)} answers are too few when {num_held_out} are held out",
            "Give more prompts, or a smaller --eval-prompts.",
        )
    ordered = sorted(answers, key=lambda a: hashlib.sha256(repr(a.prompt_ids).encode()).digest())
    return Split(train=tuple(ordered[num_held_out:]), held_out=tuple(ordered[:num_held_out]))


def fingerprint(answers: Sequence[Answered]) -> str:
    """Tells two data sets apart."""
    digest = hashlib.sha256()
    for answer in answers:
        digest.update(repr((answer.prompt_ids, answer.answer_ids)).encode())
    return digest.hexdigest()[:16]
