"""Calls of tools: found in any cut of the text, and never lost."""

import json
import random

import pytest

from dspark.text.tool_calls import ToolCall, ToolCallReader, knows_tools

WEATHER = ToolCall("weather", '{"city": "Paris"}')
TIME = ToolCall("time", "{}")


def written(call: ToolCall) -> str:
    body = {"name": call.name, "arguments": json.loads(call.arguments)}
    return f"<tool_call>\n{json.dumps(body)}\n</tool_call>"


def read(text: str, cuts: list[int]) -> list[str | ToolCall]:
    reader, parts = ToolCallReader(), []
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


def test_a_template_that_has_no_tools_knows_none():
    assert not knows_tools("{% for message in messages %}")
    assert knows_tools("{% if tools %}Answer with <tool_call>{% endif %}")
