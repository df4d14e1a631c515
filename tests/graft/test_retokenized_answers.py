"""Answers that a person corrected, and ids of another tokenizer: what the byte tokenizer spells is
known by counting bytes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from dspark.config import GraftConfig, RuntimeConfig
from dspark.engine.session import open_session
from dspark.errors import InputError
from dspark.graft.data.answer_file import Answer, AnswerFile
from dspark.graft.data.corpus import CorpusProgress
from dspark.graft.data.prompt_sources import PromptSource
from dspark.graft.data.retokenized_answers import settled_answers
from dspark.graft.data.write_answers import AnswerSettings, write_answers
from dspark.graft.job import GraftJob
from dspark.graft.run import GraftRun
from dspark.graft.train.trainer import StepReport
from dspark.hub.catalog.pairs import PairFiles
from dspark.progress import follow

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def tokenizer(tiny_chat_dir: Path) -> Any:
    """transformers' own, whose encoding is the right one."""
    return AutoTokenizer.from_pretrained(tiny_chat_dir)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def lines(*records: dict[str, Any]) -> Path:
        path = tmp_path / "answers.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return lines


def record(tokenizer: Any, prompt: str, answer: str, ids_of: str | None = None) -> dict[str, Any]:
    """As dspark writes it; `ids_of` is what the answer was before it was corrected."""
    messages = [{"role": "user", "content": prompt}]
    turn = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(answer if ids_of is None else ids_of, add_special_tokens=False)
    return {
        "prompt_ids": tokenizer.encode(turn, add_special_tokens=False),
        "answer_ids": [*ids, tokenizer.eos_token_id],
        "prompt": prompt,
        "answer": answer,
    }


def test_what_the_target_wrote_is_left_as_it_is(tiny_chat_dir: Path, tmp_path: Path) -> None:
    """Random bytes, most of them no characters: their text still spells them."""
    session = follow(open_session(PairFiles("tiny", tiny_chat_dir, None)))
    settings = AnswerSettings(max_tokens=12, temperature=1.0, seed=3)
    file = AnswerFile(tmp_path / "answers.jsonl")
    written = list(file.append(write_answers(session, ["Hi", " ä\n"], settings, 99)))
    assert len({answer.tokenizer for answer in written}) == 1 and written[0].tokenizer
    settled = settled_answers(file.path, tiny_chat_dir)
    assert (settled.answers, settled.notes) == (written, ())


def test_a_corrected_answer_has_the_ids_of_its_text(
    tiny_chat_dir: Path, tokenizer: Any, write: Write
) -> None:
    cut = record(tokenizer, "Two", "no and", "on adn")
    cut["answer_ids"].pop()  # it ended at the limit of tokens
    kept = record(tokenizer, "Three", "fine")
    path = write(record(tokenizer, "One", "the end", "teh end"), cut, kept)
    settled = settled_answers(path, tiny_chat_dir)
    right = [tokenizer.encode(text) for text in ("the end", "no and", "fine")]
    eos = tokenizer.eos_token_id
    assert [list(answer.answer_ids) for answer in settled.answers] == [
        [*right[0], eos],
        right[1],
        [*right[2], eos],
    ]
    assert settled.answers[2].prompt_ids == tuple(kept["prompt_ids"])
    assert settled.notes == (
        "2 answers were tokenised again, since the text differs from the token ids: "
        "answers.jsonl:1, answers.jsonl:2",
    )


def test_lines_without_ids_are_tokenised(tiny_chat_dir: Path, tokenizer: Any, write: Write) -> None:
    whole = record(tokenizer, "One", "yes")
    bare = {"prompt": "One", "answer": "yes"}
    same = settled_answers(write(whole), tiny_chat_dir).answers
    assert settled_answers(write(bare), tiny_chat_dir).answers == same
    assert settled_answers(write({**bare, "prompt_ids": None}), tiny_chat_dir).answers == same
    with pytest.raises(InputError, match=r":1 has an answer without text"):
        settled_answers(write({**bare, "answer": ""}), tiny_chat_dir)


def test_a_corrected_prompt_needs_the_mark_of_its_tokenizer(
    tiny_chat_dir: Path, tokenizer: Any, write: Write
) -> None:
    was, now = record(tokenizer, "Hwo?", "so"), record(tokenizer, "How?", "so")
    mark = settled_answers(write(was), tiny_chat_dir).answers[0].tokenizer
    path = write({**was, "prompt": "How?", "tokenizer": mark})
    assert list(settled_answers(path, tiny_chat_dir).answers[0].prompt_ids) == now["prompt_ids"]
    with pytest.raises(InputError, match=r":1 has token ids that do not spell its prompt"):
        settled_answers(write({**was, "prompt": "How?"}), tiny_chat_dir)


def test_ids_of_another_tokenizer_are_refused(
    tiny_chat_dir: Path, tiny_llama_dir: Path, tokenizer: Any, write: Write
) -> None:
    own = record(tokenizer, "One", "yes")
    shifted = {**own, "prompt_ids": [(i + 1) % 256 for i in own["prompt_ids"]]}
    for foreign, words in (
        ({**own, "tokenizer": "0123456789abcdef"}, "has the token ids of another tokenizer"),
        (shifted, "do not spell its prompt"),
        ({**own, "answer_ids": [100_000, 3]}, "beyond the model's vocabulary"),
        ({**own, "answer_ids": [-1, 3]}, "beyond the model's vocabulary"),
    ):
        with pytest.raises(InputError, match=words):
            settled_answers(write(own, foreign), tiny_chat_dir)
    without = settled_answers(
        write({**own, "prompt_ids": [3], "answer_ids": [1, 2]}), tiny_llama_dir
    )
    assert without.answers[0].answer_ids == (1, 2)  # no tokenizer to hold it against


def test_a_corrected_answer_reaches_the_training(
    tiny_chat_dir: Path, tokenizer: Any, write: Write, tmp_path: Path, small_config: GraftConfig
) -> None:
    """The first step's loss is that of the corrected text's own ids, to the bit."""
    config = replace(small_config, steps=1, mask_token_id=200, eval_prompts=2)

    def first_loss(name: str, *records: dict[str, Any]) -> tuple[float, list[str]]:
        job = GraftJob(
            base=PairFiles("tiny", tiny_chat_dir, None),
            source=PromptSource(),
            data=write(*records),
            out=tmp_path / name,
            config=config,
            runtime=RuntimeConfig("cpu", "float32"),
        )
        notes: list[str] = []
        for event in GraftRun(job).events():
            if isinstance(event, CorpusProgress):
                notes += event.notes
            if isinstance(event, StepReport):
                return event.loss, notes
        raise AssertionError("there was no step")

    old, new = (f"the {word} and that is it" for word in ("answre", "answer"))
    was = [record(tokenizer, f"Q{n}?", f"{n} {old}") for n in range(6)]
    mended = [record(tokenizer, f"Q{n}?", f"{n} {new}", f"{n} {old}") for n in range(6)]
    right = [record(tokenizer, f"Q{n}?", f"{n} {new}") for n in range(6)]
    first, _ = first_loss("was", *was)
    corrected, notes = first_loss("mended", *mended)
    assert corrected == first_loss("right", *right)[0] != first
    assert any(note.startswith("6 answers were tokenised again") for note in notes)


def test_fields_survive_a_rewriting(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers.jsonl")
    answers = [Answer((1,), (2, 3), f"{n}", "x", "mark" * (n % 2)) for n in range(6)]
    list(file.append(answers))
    file.sort()
    assert set(file.read()) == set(answers)
    assert replace(answers[1], tokenizer="") not in file.read()
