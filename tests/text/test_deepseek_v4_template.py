"""DeepSeek-V4's prompt, for a tokenizer that ships none. A second."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dspark.errors import InputError
from dspark.text.stream import TextCodec
from dspark.text.tool_calls import ToolCallReader
from dspark.text.tool_format import ToolCall

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


def test_tools_their_calls_and_results(tmp_path: Path) -> None:
    """As encoding/README.md of the repositories shows a call; what is written is read again."""
    codec = write_tokenizer(tmp_path, (*MARKS, "｜DSML｜"))
    arguments = {"path": "/tmp/<x>.c", "line": 42, "flags": ["a", None]}
    tools = [{"type": "function", "function": {"name": "edit", "parameters": {"type": "object"}}}]
    chat: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Go."},
        {
            "role": "assistant",
            "content": "Yes.",
            "tool_calls": [{"function": {"name": "edit", "arguments": arguments}}],
        },
        {"role": "tool", "content": "done"},
        {"role": "tool", "content": "done, too"},
        {"role": "user", "content": "And?"},
    ]
    ids = codec.encode_chat(chat, tools)
    said = str(codec._tokenizer.decode(ids, skip_special_tokens=False))
    system, _, rest = said.partition("<｜User｜>")
    assert system.startswith("<｜begin▁of▁sentence｜>Be brief.\n\n## Tools\n\n")
    assert system.endswith('\n{"name": "edit", "parameters": {"type": "object"}}\n')
    called, _, results = rest.partition("<｜end▁of▁sentence｜>")
    assert called == (
        "Go.<｜Assistant｜></think>Yes.\n\n<｜DSML｜tool_calls>\n"
        '<｜DSML｜invoke name="edit">\n'
        '<｜DSML｜parameter name="path" string="true">/tmp/<x>.c</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="line" string="false">42</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="flags" string="false">["a", null]</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
    )
    assert results == (
        "<｜User｜><tool_result>done</tool_result>\n\n<tool_result>done, too</tool_result>"
        "\n\nAnd?<｜Assistant｜></think>"
    )
    text, call = [*ToolCallReader(tools, codec.tool_format).push(called.partition("</think>")[2])]
    assert text == "Yes." and isinstance(call, ToolCall)
    assert (call.name, json.loads(call.arguments)) == ("edit", arguments)
    bare = str(codec._tokenizer.decode(codec.encode_chat(chat[1:2], tools)))
    assert bare.startswith("<｜begin▁of▁sentence｜>\n\n## Tools") and "<｜User｜>Go." in bare


def test_thinking_is_opened_where_it_is_asked_for(tmp_path: Path) -> None:
    """Only for the answer to come; earlier answers stand behind a closed one."""
    codec = write_tokenizer(tmp_path)
    assert codec.has_thinking_switch
    marks = {mark: codec._tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    messages = [*said, {"role": "user", "content": "c"}]
    ids = codec.encode_chat(messages, thinking=True)
    assert ids[-2:] == [marks["<｜Assistant｜>"], marks["<think>"]]
    assert ids.count(marks["<think>"]) == ids.count(marks["</think>"]) == 1
    for without in (codec.encode_chat(messages), codec.encode_chat(messages, thinking=False)):
        assert without[-1] == marks["</think>"] and marks["<think>"] not in without
    splitter = codec.splitter(ids)
    assert splitter.is_thinking


ENCODING = (
    "import sys\n\nsys.exit('this code is never run')\n\n"
    'REASONING_EFFORT_MAX = (\n    "Think \\"hard\\".\\n"\n    "Do {{ not }} stop.\\n\\n"\n)\n'
    "REASONING_EFFORT_LOW = make()\n"
)


def write_encoding(folder: Path, text: str) -> TextCodec:
    (folder / "encoding").mkdir(exist_ok=True)
    (folder / "encoding" / "encoding_dsv4.py").write_text(text)
    return write_tokenizer(folder)


def test_the_words_of_an_effort_are_those_of_the_files_own_code(tmp_path: Path) -> None:
    """Right behind the first mark, where thinking is not turned off; a level thinks."""
    codec = write_encoding(tmp_path, ENCODING)
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]

    def said(**switches: Any) -> str:
        ids = codec.encode_chat(asked, **switches)
        return str(codec._tokenizer.decode(ids, skip_special_tokens=False))

    begin, rest = "<｜begin▁of▁sentence｜>", "Be brief.<｜User｜>a<｜Assistant｜>"
    words = 'Think "hard".\nDo {{ not }} stop.\n\n'
    assert codec.has_effort and codec.has_thinking_switch
    assert said(effort="max") == said(effort="max", thinking=True) == f"{begin}{words}{rest}<think>"
    assert said(effort="high") == said(thinking=True) == f"{begin}{rest}<think>"
    assert said(effort="max", thinking=False) == said() == f"{begin}{rest}</think>"
    with pytest.raises(InputError, match="levels of effort: high, max"):
        said(effort="low")


@pytest.mark.parametrize("text", ["", "def (", "REASONING_EFFORT_MAX = f'{x}'", "\0"])
def test_without_words_there_are_no_levels(tmp_path: Path, text: str) -> None:
    codec = write_encoding(tmp_path, text)
    assert not codec.has_effort
    with pytest.raises(InputError, match="no levels of effort"):
        codec.encode_chat([{"role": "user", "content": "a"}], effort="max")
