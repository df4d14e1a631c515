"""Answer files, whole and broken."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from dspark.errors import InputError
from dspark.graft.data.answer_file import (
    Answer,
    AnswerFile,
    split,
)


def _answer(index: int) -> Answer:
    return Answer((1, 2, index), (3, 4), f"prompt {index} \u2028 ü", "answer\n")


def test_answers_come_back_as_they_were_written(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "new" / "answers.jsonl")
    assert file.read() == []
    answers = [_answer(i) for i in range(3)]
    assert list(file.append(answers[:2])) == answers[:2]
    assert list(file.append(answers[2:])) == answers[2:]
    assert file.read() == answers


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers.jsonl")
    list(file.append([_answer(0), _answer(1)]))
    file.path.write_bytes(file.path.read_bytes()[:-5])
    assert file.read() == [_answer(0)]
    list(file.append([_answer(2)]))
    assert file.read() == [_answer(0), _answer(2)]


def test_files_as_other_programs_leave_them(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers.jsonl")
    list(file.append([_answer(0), _answer(1)]))
    raw = file.path.read_bytes()
    for changed in (
        raw.rstrip(b"\n"),
        raw.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + raw,
        raw.replace(b"\n", b"\n\n"),
    ):
        file.path.write_bytes(changed)
        assert file.read() == [_answer(0), _answer(1)]
        list(file.append([_answer(2)]))
        assert file.read() == [_answer(0), _answer(1), _answer(2)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (gzip.compress, "gzip"),
        (lambda raw: raw.decode().encode("utf-16"), "UTF-16"),
        (lambda raw: raw + b'{"messages": []}\n', r":2 is not an answer"),
    ],
)
def test_what_is_no_answer_file_is_named(
    tmp_path: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    file = AnswerFile(tmp_path / "answers.jsonl")
    list(file.append([_answer(0)]))
    file.path.write_bytes(change(file.path.read_bytes()))
    with pytest.raises(InputError, match=words):
        file.read()


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers.jsonl")
    file.path.write_text('{"prompt": "no ids"}\n')
    with pytest.raises(InputError, match=r"answers\.jsonl:1"):
        file.read()


def test_the_split_depends_on_neither_order_nor_luck() -> None:
    answers = [_answer(i) for i in range(20)]
    parts = split(answers, 4)
    assert len(parts.held_out) == 4
    assert set(parts.train) | set(parts.held_out) == set(answers)
    assert not set(parts.train) & set(parts.held_out)
    assert split(answers[::-1], 4) == parts


def test_what_was_trained_on_is_never_held_out_of_more_answers() -> None:
    answers = [_answer(i) for i in range(40)]
    for count in range(5, 40):
        before, after = split(answers[:count], 4), split(answers, 4)
        assert set(before.train) <= set(after.train)


def test_too_few_answers_to_hold_any_out() -> None:
    with pytest.raises(InputError, match="too few"):
        split([_answer(0)], 4)
