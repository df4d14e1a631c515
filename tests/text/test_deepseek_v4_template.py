"""DeepSeek-V4's prompt, for a tokenizer that ships none. A second."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dspark.text.stream import TextCodec

MARKS = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "</think>",
    "<think>",
)


def write_tokenizer(
    folder: Path, marks: Sequence[str] = MARKS, model_type: str = "deepseek_v4"
) -> TextCodec:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    codec = TextCodec.from_directory(folder)
    assert codec is not None
    return codec


def prompt_of(codec: TextCodec, *messages: tuple[str, str]) -> str:
    ids = codec.encode_chat([{"role": role, "content": content} for role, content in messages])
    return str(codec._tokenizer.decode(ids, skip_special_tokens=False))


def test_a_question_is_answered_without_reasoning(tmp_path: Path) -> None:
    codec = write_tokenizer(tmp_path)
    ids = codec.encode_chat([{"role": "user", "content": "Hi"}])
    marks = [codec._tokenizer.convert_tokens_to_ids(mark) for mark in MARKS]
    assert ids == [marks[0], marks[2], *codec.encode("Hi"), marks[3], marks[4]]


def test_a_conversation(tmp_path: Path) -> None:
    said = prompt_of(
        write_tokenizer(tmp_path),
        ("system", "Be brief."),
        ("user", " a\n"),
        ("assistant", "b"),
        ("user", "c"),
        ("user", "d"),
    )
    assert said == (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜> a\n<｜Assistant｜></think>"
        "b<｜end▁of▁sentence｜><｜User｜>c\n\nd<｜Assistant｜></think>"
    )


@pytest.mark.parametrize(
    ("marks", "model_type"), [(MARKS[:4], "deepseek_v4"), (MARKS, "deepseek_v3")]
)
def test_a_tokenizer_of_another_model_stays_as_it_is(
    tmp_path: Path, marks: Sequence[str], model_type: str
) -> None:
    assert not write_tokenizer(tmp_path, marks, model_type).has_chat_template


def test_a_template_that_is_shipped_is_taken(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    codec = TextCodec.from_directory(tmp_path)
    assert codec is not None and prompt_of(codec, ("user", "x")) == "x!"
