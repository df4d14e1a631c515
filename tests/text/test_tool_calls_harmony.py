"""gpt-oss's calls of tools: read from wherever a header names the function, and written back."""

import json
import random
from pathlib import Path

import pytest

from dspark.errors import InputError
from dspark.text.stream import TextCodec, TextStream
from dspark.text.tool_calls import ToolCallReader
from dspark.text.tool_calls_harmony import HARMONY as FORM
from dspark.text.tool_format import ToolCall
from tests.text.test_thinking import HARMONY, codec_of

# in this order the published template writes an effort, tools, calls and their results
TEMPLATE = (
    "Reasoning: {{ reasoning_effort | default('medium') }}\n"
    "{% for tool in tools or [] %}type {{ tool.function.name }} = (_: any) => any;{% endfor %}"
    "{% for m in messages %}"
    "{% if m.tool_calls %}{% set call = m.tool_calls[0].function %}"
    "<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>"
    "{{ call.arguments | tojson }}<|call|>"
    "{% elif m.role == 'tool' %}"
    "<|start|>functions to=assistant<|channel|>commentary<|message|>{{ m.content }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}<|start|>assistant"
)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
ARGUMENTS = '{"city": "Paris"}'
CALLS = {
    "behind the channel": (
        f"{THOUGHT}<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
        f"{ARGUMENTS}<|call|>"
    ),
    "before the channel": (
        f"{THOUGHT} to=functions.weather<|channel|>commentary json<|message|>{ARGUMENTS}<|call|>"
    ),
    "without its last mark": (
        f"{THOUGHT}<|channel|>commentary to=functions.weather<|message|>{ARGUMENTS}"
    ),
}


@pytest.fixture
def codec(tmp_path: Path) -> TextCodec:
    return codec_of(tmp_path, special=HARMONY, chat_template=TEMPLATE)


def answered(codec: TextCodec, text: str, cut: int = 0) -> tuple[str, str, list[ToolCall]]:
    """Thinking, words and calls of an answer."""
    prompt = codec.encode_chat([{"role": "user", "content": "?"}], TOOLS)
    stream = TextStream(codec, (), prompt, shows_calls=True)
    reader, parts = ToolCallReader(TOOLS, codec.tool_format), list[str | ToolCall]()
    rest = random.Random(cut)
    held = ""
    for token_id in codec.encode(text):
        piece = stream.push(token_id)
        held += "" if stream.is_thinking else piece
        if rest.random() < 0.5:  # a reader's cuts are not those of tokens
            parts, held = [*parts, *reader.push(held)], ""
    last = stream.finish()
    parts += [*reader.push(held + ("" if stream.is_thinking else last)), *reader.finish()]
    words = "".join(part for part in parts if isinstance(part, str))
    return stream.thinking, words, [part for part in parts if isinstance(part, ToolCall)]


@pytest.mark.parametrize("where", CALLS)
def test_a_call_is_read_wherever_its_header_names_the_function(
    codec: TextCodec, where: str
) -> None:
    for cut in range(5):
        thinking, words, (call,) = answered(codec, CALLS[where], cut)
        assert (thinking, words, call.name) == ("Hm.", "", "weather")
        assert json.loads(call.arguments) == {"city": "Paris"}


def test_an_answer_beside_calls_stays_an_answer(codec: TextCodec) -> None:
    text = CALLS["behind the channel"] + "<|start|>assistant<|channel|>final<|message|>Sunny."
    thinking, words, calls = answered(codec, text)
    assert (thinking, words, len(calls)) == ("Hm.", "Sunny.", 1)
    thinking, words, calls = answered(codec, THOUGHT + "<|channel|>final<|message|>No tool.")
    assert (thinking, words, calls) == ("Hm.", "No tool.", [])
    preamble = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
    thinking, words, calls = answered(
        codec, THOUGHT + preamble + CALLS["before the channel"][len(THOUGHT) :]
    )
    assert thinking == "Hm.\n\nI look." and words == "" and len(calls) == 1


def test_what_is_no_json_stays_text(codec: TextCodec) -> None:
    text = CALLS["behind the channel"].replace(ARGUMENTS, "Paris, please")
    _, words, calls = answered(codec, text)
    assert calls == [] and "Paris, please" in words


def test_without_tools_a_call_is_no_answer(codec: TextCodec) -> None:
    stream = TextStream(codec, (), codec.encode_chat([{"role": "user", "content": "?"}]))
    for token_id in codec.encode(CALLS["behind the channel"]):
        stream.push(token_id)
    stream.finish()
    assert stream.answer == "" and ARGUMENTS in stream.thinking


def call(name: str, number: int) -> dict[str, object]:
    function = {"name": name, "arguments": {"n": number}}
    return {"id": f"call_{number}", "type": "function", "function": function}


def test_earlier_calls_are_written_one_by_one_with_their_results(codec: TextCodec) -> None:
    def result(number: int) -> dict[str, str]:
        return {"role": "tool", "tool_call_id": f"call_{number}", "content": f"r{number}"}

    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [call("f", 1), call("g", 2)]},
        result(2),
        result(1),
        {"role": "user", "content": "and?"},
    ]
    text = codec.decode(codec.encode_chat(messages, TOOLS))
    shown = [text.find(part) for part in ("functions.f", "r1", "functions.g", "r2", "and?")]
    assert -1 not in shown and shown == sorted(shown)


def test_effort_reaches_the_template(codec: TextCodec, tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "?"}]
    assert codec.has_effort
    assert codec.decode(codec.encode_chat(asked)).startswith("Reasoning: medium")
    assert codec.decode(codec.encode_chat(asked, effort="high")).startswith("Reasoning: high")
    other = codec_of(tmp_path / "other", chat_template="{{ messages }}")
    with pytest.raises(InputError, match="levels of effort"):
        other.encode_chat(asked, effort="low")


def test_the_form_is_told_by_the_template(codec: TextCodec) -> None:
    assert codec.tool_format is FORM
