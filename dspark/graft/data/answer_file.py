"""Training data: answers that the target itself wrote, in a JSONL file with one object per line:

{"prompt_ids": [...], "answer_ids": [...], "prompt": "...", "answer": "...", "tokenizer": "..."}
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dspark.atomic import replacing
from dspark.errors import InputError, StorageError
from dspark.plural import counted
from dspark.records import parse_record, read_bytes, text_lines


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt with the target's answer; the answer ends with the stop token if it was reached.

    `tokenizer` is the fingerprint of the tokenizer of the ids, "" if unknown. A line of a file may
    have no ids yet.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    prompt: str
    answer: str
    tokenizer: str = ""

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.prompt_ids + self.answer_ids


class AnswerFile:
    """Append-only, safe to stop at any moment: a truncated last line is dropped on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Answer]:
        """All complete lines. Raises InputError naming a broken line before the last."""
        return [answer for _, answer in self.numbered()]

    def numbered(self) -> list[tuple[int, Answer]]:
        """As `read`, each with its line number."""
        if not self.path.exists():
            return []
        lines = text_lines(read_bytes(self.path, "--data", unpacks=False))
        answers = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            answer = _answered(line)
            if answer is not None:
                answers.append((number, answer))
            elif number < len(lines):
                raise InputError(
                    f"{self.path}:{number} is not an answer",
                    "Delete that line, or the whole file; prompts alone go to --prompts.",
                )
        return answers

    def append(self, answers: Iterable[Answer]) -> Iterator[Answer]:
        """Write each answer as it arrives, and yield it. Raises StorageError on a full disk."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                self._end_line(file)
                for answer in answers:
                    file.write(_line(answer))
                    file.flush()
                    yield answer
        except OSError as error:
            raise not_written(self.path, error) from error

    def sort(self) -> None:
        """Sort into an order that depends on the prompts alone, not on interruptions."""
        answers = self.read()
        ordered = sorted(answers, key=lambda answer: prompt_digest(answer.prompt))
        if ordered == answers:
            return
        try:
            with replacing(self.path) as partial:
                partial.write_bytes(b"".join(map(_line, ordered)))
        except OSError as error:
            raise not_written(self.path, error) from error

    def _end_line(self, file: BinaryIO) -> None:
        """Drop a truncated last line; keep one that only lacks its line break, as editors leave
        it."""
        raw = self.path.read_bytes()
        last = raw[raw.rfind(b"\n") + 1 :]
        if last and _answered(last.decode("utf-8-sig", errors="surrogateescape")) is None:
            file.truncate(len(raw) - len(last))
        elif last:
            file.write(b"\n")


def _answered(line: str) -> Answer | None:
    record = parse_record(line)
    if record is None:
        return None
    try:
        return Answer(
            prompt_ids=tuple(map(int, record.get("prompt_ids") or ())),
            answer_ids=tuple(map(int, record.get("answer_ids") or ())),
            prompt=str(record["prompt"]),
            answer=str(record["answer"]),
            tokenizer=str(record.get("tokenizer") or ""),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _line(answer: Answer) -> bytes:
    record: dict[str, Any] = {
        "prompt_ids": list(answer.prompt_ids),
        "answer_ids": list(answer.answer_ids),
        "prompt": answer.prompt,
        "answer": answer.answer,
        **({"tokenizer": answer.tokenizer} if answer.tokenizer else {}),
    }
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def not_written(path: Path, error: OSError) -> StorageError:
    """The error for an append-only file that cannot grow."""
    return StorageError(
        f"could not write {path} ({error.strerror})",
        "Free some space and run the same command again to resume.",
    )


def prompt_digest(prompt: str) -> bytes:
    """Sort key for an even mixture of prompts from all sources."""
    return hashlib.sha256(prompt.encode()).digest()


@dataclass(frozen=True, slots=True)
class Split:
    """Held-out prompts are never trained on."""

    train: tuple[Answer, ...]
    held_out: tuple[Answer, ...]


def split(answers: Sequence[Answer], num_held_out: int) -> Split:
    """Held out are the prompts of smallest hash, whatever the order of the answers."""
    if len(answers) <= num_held_out:
        raise InputError(
            f"too few answers: {counted(len(answers), 'answer')}, of which {num_held_out} would be "
            "held out",
            "Give more prompts, or a smaller --eval-prompts.",
        )
    ordered = sorted(answers, key=lambda a: hashlib.sha256(repr(a.prompt_ids).encode()).digest())
    return Split(train=tuple(ordered[num_held_out:]), held_out=tuple(ordered[:num_held_out]))


def fingerprints(answers: Sequence[Answer]) -> list[int]:
    """A number of 63 bits for each answer's ids."""
    numbers = []
    for answer in answers:
        ids = repr((answer.prompt_ids, answer.answer_ids)).encode()
        numbers.append(int.from_bytes(hashlib.sha256(ids).digest()[:8]) >> 1)
    return numbers
