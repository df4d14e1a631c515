"""From prompt sources to a file of answers; stopped at any moment, it goes on where it was."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dspark.engine.session import Session
from dspark.errors import InputError, StorageError
from dspark.graft.answers import AnswerSettings, write_answers, write_prompts
from dspark.graft.data import AnswerFile, read_prompts


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Files of prompts, and how many prompts the target is asked to write itself."""

    files: tuple[Path, ...] = ()
    num_self_written: int = 0

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "PromptSource":
        """Each argument is a file or self:N. Raises InputError."""
        files, num_self_written = [], 0
        for argument in arguments:
            if not argument.startswith("self:"):
                files.append(Path(argument))
                continue
            count = argument.removeprefix("self:")
            if not count.isdecimal():
                raise InputError(f"{argument!r} is not self:N", "Give a number, as in self:500.")
            num_self_written += int(count)
        return cls(tuple(files), num_self_written)


@dataclass(frozen=True, slots=True)
class CorpusProgress:
    """`stage` in plain words; `done` of `total`; `notes` are lines worth telling once."""

    stage: str
    done: int
    total: int
    notes: tuple[str, ...] = ()


def grow_corpus(
    session: Session,
    source: PromptSource,
    path: Path,
    settings: AnswerSettings,
    max_prompt_tokens: int,
) -> Iterator[CorpusProgress]:
    """Append to `path` an answer to every prompt that has none yet."""
    file = AnswerFile(path)
    answered = {answer.prompt for answer in file.read()}
    prompts: list[str] = []
    if source.files:
        listed = read_prompts(source.files)
        prompts.extend(listed.prompts)
        if listed.skipped:
            names = ", ".join(listed.skipped[:3]) + (" ..." if len(listed.skipped) > 3 else "")
            note = f"{len(listed.skipped)} lines without a prompt skipped: {names}"
            yield CorpusProgress("reading prompts", len(prompts), len(prompts), (note,))
    if source.num_self_written:
        own = _OwnPrompts(path.with_suffix(".prompts.jsonl"))
        yield from own.grow(session, source.num_self_written, settings.seed)
        prompts.extend(own.read().values())
    # A stopped run has then answered an even mixture of all sources.
    prompts = sorted(dict.fromkeys(prompts), key=lambda p: hashlib.sha256(p.encode()).digest())
    missing = [prompt for prompt in prompts if prompt not in answered]
    total, done = len(prompts), len(prompts) - len(missing)
    yield CorpusProgress("writing answers", done, total)
    written = write_answers(session, missing, settings, max_prompt_tokens)
    for new, _ in enumerate(file.append(written), start=1):
        yield CorpusProgress("writing answers", done + new, total)


class _OwnPrompts:
    """Prompts that the target wrote, beside the answers: {"index": ..., "prompt": ...} a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[int, str]:
        if not self.path.exists():
            return {}
        lines = self.path.read_bytes().split(b"\n")[:-1]
        records = [json.loads(line) for line in lines]
        return {record["index"]: record["prompt"] for record in records}

    def grow(self, session: Session, count: int, seed: int) -> Iterator[CorpusProgress]:
        known = self.read()
        skip = max(known, default=-1) + 1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                if self.path.stat().st_size:
                    file.truncate(self.path.read_bytes().rfind(b"\n") + 1)
                for index, prompt in write_prompts(session, count, seed, skip):
                    record = {"index": index, "prompt": prompt}
                    file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
                    file.flush()
                    yield CorpusProgress("writing prompts", index + 1, count)
        except OSError as error:
            raise StorageError(
                f"could not write {self.path} ({error.strerror})", "Free some space and try again."
            ) from error
