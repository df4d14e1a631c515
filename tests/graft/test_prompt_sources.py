"""Prompts from every kind of source, whole and broken; answers the same with and without drafts."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dspark.config import GraftConfig, RuntimeConfig
from dspark.engine.session import Session, open_session
from dspark.errors import InputError
from dspark.graft.data.answer_file import AnswerFile
from dspark.graft.data.corpus import CorpusProgress, grow_corpus, open_corpus_session
from dspark.graft.data.prompt_sources import PromptSource
from dspark.graft.data.write_answers import (
    AnswerSettings,
    encode_prompt,
    write_answers,
    write_prompts,
)
from dspark.hub.catalog.pairs import PairFiles
from dspark.progress import follow


def _file(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _session(target: Path, head: Path | None = None) -> Session:
    session = follow(open_session(PairFiles("tiny", target, head)))
    return session


def test_broken_lines_are_named_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(
        b'{"prompt": "one"}\n'
        b"not json\n"
        b'{"question": "two"}\n'
        b'{"prompt": "  "}\n'
        b'{"prompt": 3}\n'
        b'{"prompt": "\xff"}\n'
        b'{"prompt": "lone \\ud800"}\n'
        b"[1]\n"
        b'{"prompt": "one"}\n'
        b'{"prompt": "two\\nlines"}'
    )
    listed = PromptSource((path,)).read()
    assert listed.prompts == ("one", "two\nlines")
    assert listed.skipped == tuple(f"{path}:{number}" for number in range(2, 9))
    assert listed.notes[0].startswith(f"7 lines without a prompt skipped: {path}:2, ")


def test_strictly_the_first_broken_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}\n\n\nbroken\n{"prompt": ""}\n')
    assert PromptSource((path,)).read().skipped == (f"{path}:4", f"{path}:5")
    with pytest.raises(InputError, match=r"prompts\.jsonl:4 has no prompt"):
        PromptSource((path,), is_strict=True).read()


@pytest.mark.parametrize("content", [None, "", "broken\n"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"prompts\.jsonl"):
        PromptSource((path,)).read()


def test_records_of_every_usual_kind(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "mixed.jsonl",
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "chat"}]},
        {"conversations": [{"from": "human", "value": "shared"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "Add", "input": "1 and 2", "output": "3"},
        {"instruction": "Sing", "input": ""},
        {"messages": [{"role": "assistant", "content": "no user"}]},
        {"conversations": "not a list"},
        {"instruction": "", "input": "nothing asked"},
        {"prompt": 3, "instruction": "the prompt is broken"},
        {"prompt": None, "messages": None, "instruction": "null is not there", "input": None},
        {"prompt": [{"role": "user", "content": "as messages"}], "completion": "done"},
        {"conversation": [{"role": "user", "content": "logged"}]},
        {"turns": ["first turn", "second turn"]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a part"},
                                                   {"type": "image", "url": "x"}, "a string"]}]},
        {"messages": [{"role": "user", "content": None}, {"role": "user", "content": "second"}]},
        {"text": "bare text"},
        {"messages": [{"from": "human", "value": [{"text": None}]}]},
    )  # fmt: skip
    listed = PromptSource((path,)).read()
    assert listed.prompts == (
        *("chat", "shared", "Add\n\n1 and 2", "Sing", "null is not there", "as messages"),
        *("logged", "first turn", "a part\na string", "bare text"),
    )
    assert listed.skipped == tuple(f"{path}:{number}" for number in (5, 6, 7, 8, 14, 16))


RECORDS = '{"prompt": "one\u2028Ä"}\n\n{"prompt": "two"}'


@pytest.mark.parametrize(
    "raw",
    [
        RECORDS.encode(),
        RECORDS.encode("utf-8-sig"),
        RECORDS.replace("\n", "\r\n").encode() + b"\r\n",
        gzip.compress(RECORDS.encode(), mtime=0),
        b'[\n {"prompt": "one\\u2028\\u00c4"},\n "two"\n]\n',
    ],
)
def test_files_as_other_programs_write_them(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(raw)
    listed = PromptSource((path,)).read()
    assert (listed.prompts, listed.skipped) == (("one\u2028Ä", "two"), ())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("one\n\ntwo".encode(encoding))
    with pytest.raises(InputError, match="UTF-16"):
        PromptSource((path,)).read()


def test_packed_text_keeps_its_name_and_a_torn_packing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt.gz"
    path.write_bytes(gzip.compress(b"one\n\ntwo"))
    assert PromptSource((tmp_path,)).read().origins == {"one": "mine", "two": "mine"}
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="broken gzip"):
        PromptSource((path,)).read()


def test_a_folder_holds_all_files_below_it(tmp_path: Path) -> None:
    _file(tmp_path / "b" / "deep.jsonl", {"prompt": "from json"})
    (tmp_path / "a.txt").write_bytes(b"first\nparagraph \n\n \n\nsecond\r\n\r\n\xff\n\nlast")
    (tmp_path / "notes.md").write_text("not a prompt")
    listed = PromptSource((tmp_path,)).read()
    assert listed.prompts == ("first\nparagraph", "second", "last", "from json")
    assert listed.skipped == (f"{tmp_path / 'a.txt'}:8",)


def test_a_folder_without_prompt_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \*\.jsonl or \*\.txt"):
        PromptSource((tmp_path,)).read()


def test_arguments() -> None:
    source = PromptSource.parse(["a.jsonl", "self:20", "hf:o/n:test", "self:5"], is_strict=True)
    assert source == PromptSource((Path("a.jsonl"),), 25, ("hf:o/n:test",), True)
    assert PromptSource().is_empty and not source.is_empty
    for wrong in ("self:many", "self:0", "hf:name", "hf:a/b/c/d", "hf:/name"):
        with pytest.raises(InputError, match=wrong):
            PromptSource.parse([wrong])


def test_self_alone_asks_for_what_the_steps_need_and_says_so() -> None:
    config = GraftConfig(steps=10, batch_size=6, eval_prompts=3)
    source = PromptSource.parse(["self"], config)
    assert source.num_self_written == 10 * 6 // 4 + 3
    assert source.self_reason == "10 steps of 6 see each about 4 times"


def test_a_data_set_is_read_without_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(name: str, configuration: str | None, **options: Any) -> list[dict[str, str]]:
        calls.append((name, configuration, options))
        if name == "o/missing":
            raise FileNotFoundError("no such data set\nmore")
        return [{"prompt": "one"}, {"label": "?"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    listed = PromptSource.parse(["hf:o/n", "hf:o/n/main:test"]).read()
    assert listed.prompts == ("one",)
    assert listed.skipped == ("hf:o/n row 1", "hf:o/n/main:test row 1")
    assert calls == [("o/n", None, {"split": "train"}), ("o/n", "main", {"split": "test"})]
    with pytest.raises(InputError, match=r"o/missing cannot be read \(no such data set\)"):
        PromptSource.parse(["hf:o/missing"]).read()


def test_without_the_library_of_data_sets_it_is_said_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError) as caught:
        PromptSource.parse(["hf:o/n"]).read()
    assert "[datasets]" in caught.value.hint


@pytest.fixture
def make_base(tiny_chat_dir: Path, tmp_path: Path) -> Callable[[str | None], Path]:
    """The tiny base without its chat template."""

    def make(bos: str | None) -> Path:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = tmp_path / "base"
        AutoModelForCausalLM.from_pretrained(tiny_chat_dir).save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(tiny_chat_dir)
        tokenizer.chat_template = None
        tokenizer.bos_token = bos
        tokenizer.save_pretrained(folder)
        return folder

    return make


def test_without_a_chat_template_prompts_are_lines_of_text(
    make_base: Callable[[str | None], Path], tmp_path: Path
) -> None:
    session = _session(make_base(None))
    assert session.decode(encode_prompt(session, "Hello")) == "Hello\n"
    source = PromptSource((_file(tmp_path / "p.jsonl", {"prompt": "Hello"}),))
    settings = AnswerSettings(max_tokens=8, temperature=0.0, seed=0)
    data = tmp_path / "answers.jsonl"
    told = list(grow_corpus(session, source, source.read(), data, settings, 64))
    notes = [note for event in told for note in event.notes]
    assert notes == ["the base has no chat template: prompts are plain text with a line break"]
    assert AnswerFile(data).read()[0].prompt_ids == tuple(session.encode("Hello\n"))


def test_without_a_chat_template_self_opens_with_the_bos_token(
    make_base: Callable[[str | None], Path],
) -> None:
    session = _session(make_base("<|im_start|>"))
    written = dict(write_prompts(session, 80, 0, {}))
    assert len(written) > 5
    assert all("\n" not in text for text in written.values())


def test_without_bos_token_self_is_refused_by_name(
    make_base: Callable[[str | None], Path],
) -> None:
    session = _session(make_base(None))
    with pytest.raises(InputError, match=r"--prompts self: .* no BOS token"):
        list(write_prompts(session, 4, 0, {}))


def test_own_prompts_go_on_where_they_were(tiny_chat_dir: Path) -> None:
    session = _session(tiny_chat_dir)
    whole = list(write_prompts(session, 24, 3, {}))
    assert [index for index, _ in whole] == sorted(index for index, _ in whole)
    for cut in (1, len(whole) // 2):
        assert [*whole[:cut], *write_prompts(session, 24, 3, dict(whole[:cut]))] == whole


def test_greedy_answers_are_the_same_with_drafts(
    tiny_chat_dir: Path, make_tiny_head: Callable[[Path], Path]
) -> None:
    prompts = [f"Say {number}" for number in range(12)]
    settings = AnswerSettings(max_tokens=20, temperature=0.0, seed=0)

    def answers(session: Session) -> dict[str, Any]:
        return {a.prompt: a for a in write_answers(session, prompts, settings, 100)}

    drafting = _session(tiny_chat_dir, make_tiny_head(tiny_chat_dir))
    assert drafting.has_drafter
    assert answers(drafting) == answers(_session(tiny_chat_dir))


def test_a_head_writes_the_answers_where_it_fits(
    tiny_chat_dir: Path,
    tiny_llama_dir: Path,
    make_tiny_head: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    base = PairFiles("tiny", tiny_chat_dir, None)
    own, foreign = make_tiny_head(tiny_chat_dir), make_tiny_head(tiny_llama_dir)

    def drafts(*heads: Path | None, reach: int = 200) -> bool:
        return open_corpus_session(base, RuntimeConfig(), heads, reach).has_drafter

    assert drafts(None, own) and drafts(foreign, own)
    assert not drafts(None, tmp_path) and not drafts(foreign) and not drafts(own, reach=10**6)


def test_notes_come_once(tiny_chat_dir: Path, tmp_path: Path) -> None:
    source = PromptSource.parse(["self"], GraftConfig(steps=2, batch_size=4, eval_prompts=1))
    settings = AnswerSettings(max_tokens=4, temperature=0.0, seed=0)
    data = tmp_path / "answers.jsonl"
    told = list(grow_corpus(_session(tiny_chat_dir), source, source.read(), data, settings, 200))
    assert all(isinstance(event, CorpusProgress) for event in told)
    notes = [note for event in told for note in event.notes]
    assert notes == ["self: 3 prompts (2 steps of 4 see each about 4 times)"]
