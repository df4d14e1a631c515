"""From prompt sources to a file of answers; resumes after an interruption at any moment."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dspark.checkpoints.deepspec import read_draft_config
from dspark.config import EngineConfig, RuntimeConfig
from dspark.engine.session import Session, open_session
from dspark.errors import CheckpointError, InputError, PairMismatchError
from dspark.graft.data.answer_file import AnswerFile, not_written, prompt_digest
from dspark.graft.data.prompt_sources import PromptList, PromptSource
from dspark.graft.data.write_answers import (
    AnswerSettings,
    fitting_prompts,
    has_chat_template,
    write_answers,
    write_prompts,
)
from dspark.hub.catalog.pairs import PairFiles
from dspark.plural import counted
from dspark.progress import follow
from dspark.records import parse_record, text_lines, usable


@dataclass(frozen=True, slots=True)
class CorpusProgress:
    """`stage` in words; `done` of `total`; `notes` are lines to be shown once."""

    stage: str
    done: int
    total: int
    notes: tuple[str, ...] = ()


def open_corpus_session(
    base: PairFiles,
    runtime: RuntimeConfig,
    heads: Sequence[Path | None],
    reach: int,
    engine: EngineConfig = EngineConfig(),
) -> Session:
    """With the first head that drafts for the base up to `reach` tokens, else without one."""
    for head in heads:
        if head is not None and _reaches(head, reach):
            with suppress(CheckpointError, PairMismatchError):
                return follow(open_session(replace(base, draft=head), runtime, engine))
    return follow(open_session(replace(base, draft=None), runtime, engine))


def _reaches(head: Path, tokens: int) -> bool:
    try:
        return read_draft_config(head).max_positions > tokens
    except CheckpointError:
        return False


def grow_corpus(
    session: Session,
    source: PromptSource,
    listed: PromptList,
    path: Path,
    settings: AnswerSettings,
    max_prompt_tokens: int,
) -> Iterator[CorpusProgress]:
    """Append to `path` an answer to every prompt that has none yet.

    `listed` is the content of `source`, read before loading a model.
    """
    file = AnswerFile(path)
    answered = {answer.prompt for answer in file.read()}
    prompts = list(listed.prompts)
    if notes := _notes(session, source):
        yield CorpusProgress("reading prompts", len(prompts), len(prompts), notes)
    if source.num_self_written:
        written_prompts = _OwnPrompts(path.with_suffix(".prompts.jsonl"))
        yield from written_prompts.grow(session, source.num_self_written, settings.seed)
        prompts.extend(written_prompts.read().values())
    # An interrupted run has then answered an even mixture of all sources.
    prompts = sorted(dict.fromkeys(prompts), key=prompt_digest)
    missing = [prompt for prompt in prompts if prompt not in answered]
    done = len(prompts) - len(missing)
    fitting = fitting_prompts(session.tokenizer, missing, max_prompt_tokens)
    if not answered:
        fitting.require_some()
    total = done + len(fitting.prompts)
    yield CorpusProgress("writing answers", done, total, fitting.notes)
    written = write_answers(session, fitting.prompts, settings, max_prompt_tokens)
    for new, _ in enumerate(file.append(written), start=1):
        yield CorpusProgress("writing answers", done + new, total)
    file.sort()


def _notes(session: Session, source: PromptSource) -> tuple[str, ...]:
    notes = []
    if source.self_reason:
        notes.append(f"self: {counted(source.num_self_written, 'prompt')} ({source.self_reason})")
    if not has_chat_template(session):
        notes.append("the base has no chat template: prompts are plain text with a line break")
    return tuple(notes)


class _OwnPrompts:
    """Prompts that the target wrote, next to the answers: a line {"index": ..., "prompt": ...}
    each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[int, str]:
        if not self.path.exists():
            return {}
        lines = text_lines(self.path.read_bytes())[
            :-1
        ]  # text after the last line break is truncated
        records = [parse_record(line) or {} for line in lines]
        for number, record in enumerate(records, start=1):
            if not (isinstance(record.get("index"), int) and usable(record.get("prompt"))):
                raise InputError(
                    f"{self.path}:{number} is not a prompt",
                    "Delete the file; it will be written again.",
                )
        return {record["index"]: record["prompt"] for record in records}

    def grow(self, session: Session, count: int, seed: int) -> Iterator[CorpusProgress]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                if self.path.stat().st_size:
                    file.truncate(self.path.read_bytes().rfind(b"\n") + 1)
                for index, prompt in write_prompts(session, count, seed, self.read()):
                    record = {"index": index, "prompt": prompt}
                    file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
                    file.flush()
                    yield CorpusProgress("writing prompts", index + 1, count)
        except OSError as error:
            raise not_written(self.path, error) from error
