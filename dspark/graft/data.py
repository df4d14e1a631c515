"""What a head is trained on: answers that the target itself wrote.

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

from dspark.checkpoints.files import replacing
from dspark.errors import InputError, StorageError
from dspark.graft.sources import parse_record
from dspark.plural import counted


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
                    file.write(_line(answer))
                    file.flush()
                    yield answer
        except OSError as error:
            raise not_written(self.path, error) from error

    def sort(self) -> None:
        """Into an order that follows from the prompts alone, whatever stops there were."""
        answers = self.read()
        ordered = sorted(answers, key=lambda answer: prompt_digest(answer.prompt))
        if ordered == answers:
            return
        try:
            with replacing(self.path) as partial:
                partial.write_bytes(b"".join(map(_line, ordered)))
        except OSError as error:
            raise not_written(self.path, error) from error

    def _whole_bytes(self) -> int:
        size = os.path.getsize(self.path)
        return self.path.read_bytes().rfind(b"\n") + 1 if size else 0


def _answered(line: str) -> Answered | None:
    record = parse_record(line)
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


def _line(answer: Answered) -> bytes:
    record: dict[str, Any] = {
        "prompt_ids": list(answer.prompt_ids),
        "answer_ids": list(answer.answer_ids),
        "prompt": answer.prompt,
        "answer": answer.answer,
    }
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def not_written(path: Path, error: OSError) -> StorageError:
    """What is said where an append-only file cannot grow."""
    return StorageError(
        f"could not write {path} ({error.strerror})",
        "Free some space and run the same command again; it goes on from what is there.",
    )


def prompt_digest(prompt: str) -> bytes:
    """Sorts prompts into an even mixture of their sources."""
    return hashlib.sha256(prompt.encode()).digest()


@dataclass(frozen=True, slots=True)
class Split:
    """Held-out prompts are never trained on."""

    train: tuple[Answered, ...]
    held_out: tuple[Answered, ...]


def split(answers: Sequence[Answered], num_held_out: int) -> Split:
    """The same for the same answers in any order: held out are the prompts of smallest hash."""
    if len(answers) <= num_held_out:
        raise InputError(
            f"too few answers: {counted(len(answers), 'answer')}, of which {num_held_out} would be "
            "held out",
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
