"""Answers whose token ids and text agree: corrected text is tokenised again.

Ids mean nothing without their tokenizer, so each line has its fingerprint; older lines are
identified by their text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dspark.errors import InputError
from dspark.graft.data.answer_file import Answer, AnswerFile
from dspark.graft.data.write_answers import user_turn
from dspark.plural import counted
from dspark.targets.dense_files import read_config
from dspark.targets.stop_tokens import stop_tokens
from dspark.text.stream import TextCodec, TextStream

OTHER_HINT = (
    "Use a file of this model's answers; without its prompt_ids and answer_ids a line is tokenised "
    "anew."
)


@dataclass(frozen=True, slots=True)
class Settled:
    """`notes` report the answers that were tokenised again."""

    answers: list[Answer]
    notes: tuple[str, ...]


def settled_answers(path: Path, base: Path) -> Settled:
    """The answers of a file for the target in `base`. Raises InputError for ids that are not its.

    A line of another tokenizer is refused, never interpreted with this one.
    """
    lines = AnswerFile(path).numbered()
    if not lines:
        return Settled([], ())
    tokens = AnswerTokens(base)
    answers, changed = list[Answer](), list[str]()
    for number, stored in lines:
        answer = tokens.settle(stored, f"{path}:{number}")
        answers.append(answer)
        if answer.token_ids != stored.token_ids:
            changed.append(f"{path.name}:{number}")
    if not changed:
        return Settled(answers, ())
    shown = ", ".join(changed[:3]) + " ..." * (len(changed) > 3)
    were = "was" if len(changed) == 1 else "were"
    what = f"{counted(len(changed), 'answer')} {were} tokenised again, since the text differs"
    return Settled(answers, (f"{what} from the token ids: {shown}",))


class AnswerTokens:
    """The target's tokenizer, if it has one."""

    def __init__(self, base: Path) -> None:
        config = read_config(base)
        codec = TextCodec.from_directory(base)
        self._texts = None if codec is None else _Texts(codec, stop_tokens(base, config))
        self._vocabulary = config.get_text_config().vocab_size

    def settle(self, kept: Answer, place: str) -> Answer:
        """The answer with ids that match its text; `place` names the line in an InputError."""
        if any(not 0 <= token < self._vocabulary for token in kept.token_ids):
            raise InputError(f"{place} has token ids beyond the model's vocabulary", OTHER_HINT)
        if self._texts is not None:
            return self._texts.settle(kept, place)
        if not kept.answer_ids:
            raise InputError(
                f"{place} has no token ids, and the model has no tokenizer", "Add them."
            )
        return kept


@dataclass(frozen=True, slots=True)
class _Texts:
    codec: TextCodec
    stop_ids: frozenset[int]

    def settle(self, kept: Answer, place: str) -> Answer:
        if kept.tokenizer not in ("", self.codec.fingerprint):
            raise InputError(f"{place} has the token ids of another tokenizer", OTHER_HINT)
        has_prompt, has_answer = self._has_prompt(kept), self._has_answer(kept)
        if kept.prompt_ids and not (has_prompt or kept.tokenizer):
            raise InputError(f"{place} has token ids that do not spell its prompt", OTHER_HINT)
        settled = replace(
            kept,
            prompt_ids=kept.prompt_ids if has_prompt else user_turn(self.codec, kept.prompt),
            answer_ids=kept.answer_ids if has_answer else self._encoded(kept),
            tokenizer=self.codec.fingerprint,
        )
        if len(settled.answer_ids) < 2:
            raise InputError(f"{place} has an answer without text", "Delete that line.")
        return settled

    def _has_prompt(self, kept: Answer) -> bool:
        """Templates strip text between their marks, and tokenizers may normalise it."""
        if not kept.prompt_ids:
            return False
        is_inside = kept.prompt.strip() in self.codec.decode(kept.prompt_ids)
        return is_inside or user_turn(self.codec, kept.prompt) == kept.prompt_ids

    def _has_answer(self, kept: Answer) -> bool:
        ids = self._without_stop(kept.answer_ids)
        return bool(kept.answer_ids) and kept.answer in (
            self.codec.decode(ids),
            raw_text(self.codec, ids),
        )

    def _without_stop(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return ids[:-1] if ids and ids[-1] in self.stop_ids else ids

    def _encoded(self, kept: Answer) -> tuple[int, ...]:
        """The text, ended as the ids were, or by a stop token without ids."""
        end = kept.answer_ids[len(self._without_stop(kept.answer_ids)) :]
        if not kept.answer_ids:
            eos = self.codec.eos_token_id
            end = (eos,) if eos in self.stop_ids else tuple(sorted(self.stop_ids)[:1])
        return (*self.codec.encode_rest(kept.answer), *end)


def raw_text(codec: TextCodec, ids: Sequence[int]) -> str:
    """The text as the engine returns it, with its marks."""
    stream = TextStream(codec)
    for token_id in ids:
        stream.push(token_id)
    stream.finish()
    return stream.answer
