"""Calls of tools: found in any cut of the text, and never lost."""

import json
import random

import pytest

from dspark.errors import InputError
from dspark.text.chat_template import with_calls_in_text
from dspark.text.stream import TextCodec, TextStream
from dspark.text.tool_calls import ToolCallReader
from dspark.text.tool_calls_dsml import DSML
from dspark.text.tool_calls_gemma import GEMMA
from dspark.text.tool_calls_hermes import HERMES
from dspark.text.tool_calls_lfm import LFM
from dspark.text.tool_format import ToolCall
from dspark.text.tool_formats import format_of
from tests.automaton import write_byte_tokenizer

WEATHER = ToolCall("weather", '{"city": "Paris"}')
TIME = ToolCall("time", "{}")


def written(call: ToolCall) -> str:
    body = {"name": call.name, "arguments": json.loads(call.arguments)}
    return f"<tool_call>\n{json.dumps(body)}\n</tool_call>"


def read(text: str, cuts: list[int], form=HERMES) -> list[str | ToolCall]:
    reader, parts = ToolCallReader((), form), []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        parts += reader.push(text[start:end])
    parts += reader.finish()
    joined: list[str | ToolCall] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("No call at all. ", ["No call at all. "]),
        (written(WEATHER), [WEATHER]),
        (f"Let me see.\n\n{written(WEATHER)}\n{written(TIME)}\n", ["Let me see.", WEATHER, TIME]),
        (f"{written(TIME)}Done.", [TIME, "Done."]),
        ('<tool_call>{"name": "time"}', [TIME]),  # the last mark is left out
        ("a < b <tool b <t", ["a < b <tool b <t"]),
        ("<tool_call>not JSON</tool_call>", ["<tool_call>not JSON</tool_call>"]),
        ("<tool_call>[1]</tool_call> x", ["<tool_call>[1]</tool_call> x"]),
        ('<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', [ToolCall("f", "{}")]),
    ],
)
def test_whatever_the_cuts(text, parts):
    assert read(text, []) == parts
    assert read(text, list(range(1, len(text)))) == parts
    draw = random.Random(0)
    for _ in range(50):
        cuts = sorted(draw.sample(range(1, len(text)), min(4, len(text) - 1)))
        assert read(text, cuts) == parts


TAGS = "<tool_call>\n<function=write>\n<parameter=path>\na.py\n</parameter>\n"
TAGS += "<parameter=lines>\n3\n</parameter>\n<parameter=text>\nif a < b:\n    1\n</parameter>\n"
TAGS += "</function>\n</tool_call>"
SCHEMA = {"properties": {"path": {"type": "string"}, "lines": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "write", "parameters": SCHEMA}}]


def test_calls_in_tags_are_read_by_the_schemas_types():
    whole = [*ToolCallReader(TOOLS).push(f"Yes.\n{TAGS}")]
    assert whole[0] == "Yes." and whole[1].name == "write"
    expected = {"path": "a.py", "lines": 3, "text": "if a < b:\n    1"}
    assert json.loads(whole[1].arguments) == expected
    (untyped,) = ToolCallReader().push(TAGS)
    assert json.loads(untyped.arguments)["lines"] == "3"
    (empty,) = ToolCallReader(TOOLS).push("<tool_call><function=now></function></tool_call>")
    assert empty == ToolCall("now", "{}")


def test_tags_that_are_no_call_stay_text():
    for text in (
        "<function=write>\nwhat?\n</function>",
        "<function=>",
        "<parameter=a>1</parameter>",
    ):
        assert "".join(ToolCallReader(TOOLS).push(f"<tool_call>{text}</tool_call>")) == (
            f"<tool_call>{text}</tool_call>"
        )


def test_text_is_not_held_back_where_no_call_can_begin():
    reader = ToolCallReader()
    assert [*reader.push("Hello <b>")] == ["Hello <b>"]
    assert [*reader.push("Hello <to")] == ["Hello"]
    assert [*reader.push("p>")] == [" <top>"]


def call(name: str, **arguments: object) -> ToolCall:
    return ToolCall(name, json.dumps(arguments))


# as the families' own documents show them: ai.google.dev (function calling with Gemma 4), the model
# cards of LFM2, docs.liquid.ai, and encoding/README.md of DeepSeek-V4
PUBLISHED = [
    (
        GEMMA,
        '<|tool_call>call:get_current_temperature{location:<|"|>London<|"|>}<tool_call|>',
        [call("get_current_temperature", location="London")],
    ),
    (
        LFM,
        '<|tool_call_start|>[get_candidate_status(candidate_id="12345")]<|tool_call_end|>'
        "Checking the current status of candidate ID 12345.",
        [
            call("get_candidate_status", candidate_id="12345"),
            "Checking the current status of candidate ID 12345.",
        ],
    ),
    (
        DSML,
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="edit">\n'
        '<｜DSML｜parameter name="path" string="true">/tmp/x.c</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="line" string="false">42</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        [call("edit", path="/tmp/x.c", line=42)],
    ),
]
OURS = [
    (
        GEMMA,
        'Well.\n<|tool_call>call:f{a:1.5,b:true,c:null,d:{x:<|"|>{,}:"<|"|>,y:[]},e:[1,<|"|>z<|"|>]}'
        "<tool_call|><|tool_call>call:now{}<tool_call|>",
        [
            "Well.",
            call("f", a=1.5, b=True, c=None, d={"x": '{,}:"', "y": []}, e=[1, "z"]),
            call("now"),
        ],
    ),
    (GEMMA, "<|tool_call>call:f{unit:celsius}<tool_call|>", [call("f", unit="celsius")]),
    (GEMMA, "<|tool_call>call:f{a:}<tool_call|>", ["<|tool_call>call:f{a:}<tool_call|>"]),
    (GEMMA, "<|tool_call>call:f{a:1<tool_call|>", ["<|tool_call>call:f{a:1<tool_call|>"]),
    (
        LFM,
        "<|tool_call_start|>[a.b(x=[1, -2], y={'k': true}, z=None), now()]<|tool_call_end|>",
        [call("a.b", x=[1, -2], y={"k": True}, z=None), call("now")],
    ),
    (
        LFM,
        '<|tool_call_start|>[{"name": "f", "arguments": {"a": null}}]<|tool_call_end|>',
        [call("f", a=None)],
    ),
    *(
        (LFM, text, [text])
        for text in (
            "<|tool_call_start|>[f(1)]<|tool_call_end|>",
            "<|tool_call_start|>[f(x=g())]<|tool_call_end|>",
            "<|tool_call_start|>[f(**{'a': 1})]<|tool_call_end|>",
            "<|tool_call_start|>f(<|tool_call_end|>",
        )
    ),
    (
        DSML,
        'Both.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="a">\n'
        '<｜DSML｜parameter name="t" string="true">if a < b:\n  "c"</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="l" string="false">[1, {"x": null}]</｜DSML｜parameter>\n'
        '</｜DSML｜invoke>\n<｜DSML｜invoke name="b">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>',
        ["Both.", call("a", t='if a < b:\n  "c"', l=[1, {"x": None}]), call("b")],
    ),
    (
        DSML,
        "<｜DSML｜tool_calls>x</｜DSML｜tool_calls>",
        ["<｜DSML｜tool_calls>x</｜DSML｜tool_calls>"],
    ),
]


@pytest.mark.parametrize(("form", "text", "parts"), [*PUBLISHED, *OURS])
def test_each_form_whatever_the_cuts(form, text, parts):
    assert read(text, [], form) == parts
    assert read(text, list(range(1, len(text))), form) == parts
    draw = random.Random(1)
    for _ in range(20):
        cuts = sorted(draw.sample(range(1, len(text)), min(4, len(text) - 1)))
        assert read(text, cuts, form) == parts


def test_earlier_calls_of_lfm_are_written_into_the_text_that_is_read_again():
    functions = [
        {"name": "f", "arguments": {"a": 'x"y', "b": [True]}},
        {"name": "g", "arguments": {}},
    ]
    message = {
        "role": "assistant",
        "content": "Yes.",
        "tool_calls": [{"function": f} for f in functions],
    }
    chat = [{"role": "user", "content": "Go."}, message]
    (asked, told) = with_calls_in_text(chat, LFM, "List of tools: [")
    assert asked == chat[0]
    expected = ["Yes.", call("f", a='x"y', b=[True]), call("g")]
    assert read(told["content"], [], LFM) == expected
    assert with_calls_in_text(chat, LFM, "{{ message.tool_calls }}") == chat
    assert with_calls_in_text(chat, HERMES, "") == chat


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{% if tools %}Answer with <tool_call>{% endif %}", HERMES),
        ("{% if tools %}<|tool>...{% endif %}<|tool_call>call:", GEMMA),
        ("{% if tools %}{{ 'List of tools: [' }}", LFM),
        ("{% if tools %}<｜DSML｜invoke", DSML),
    ],
)
def test_the_template_tells_the_form(template, form):
    assert format_of(template) is form


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("{% for message in messages %}", "has no tools"),
        ("{% if tools %}[AVAILABLE_TOOLS]", "Mistral"),
        ("{% if tools %}<tool_call>name<arg_key>", "GLM"),
        ("{{ tools }}<｜tool▁calls▁begin｜>", "DeepSeek-V3"),
        ("{{ tools }}<|START_ACTION|>", "Command A"),
        ("{{ tools }}<|python_tag|>", "Llama 3"),
    ],
)
def test_forms_that_are_not_read_are_refused_by_name(template, family):
    with pytest.raises(InputError, match=family) as told:
        format_of(template)
    assert "Gemma 4" in told.value.hint


@pytest.mark.parametrize(("form", "text", "parts"), PUBLISHED)
def test_special_tokens_of_calls_are_text_where_tools_are_offered(form, text, parts, tmp_path):
    """And of no answer else."""
    template = f"{{% if tools %}}{form.opening}{{% endif %}}{{{{ messages }}}}"
    write_byte_tokenizer(tmp_path, special=form.specials, chat_template=template)
    codec = TextCodec.from_directory(tmp_path)
    ids = codec.encode(text)
    assert set(form.specials) <= {codec.texts.text_of(i) for i in ids}
    for shows_calls in (True, False):
        stream = TextStream(codec, (), codec.encode("q"), shows_calls=shows_calls)
        assert [span.text for span in stream.preview(ids[:1])] != [""] or not shows_calls
        shown = "".join([*map(stream.push, ids), stream.finish()])
        bare = text
        for special in form.specials:
            bare = bare.replace(special, "")
        assert shown == (text if shows_calls else bare)
        assert (read(shown, [], form) == parts) == shows_calls
