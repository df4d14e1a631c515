"""Tools over HTTP: offered through the template, called in OpenAI's form, whole and streamed."""

import json
from dataclasses import replace

import pytest
import torch

from dspark.text.chat_template import ChatTemplate
from dspark.text.tool_calls_gemma import GEMMA
from tests.automaton import chain, write_automaton, write_byte_tokenizer
from tests.engine.pairs import open_pair as open_automaton
from tests.serve.conftest import serving
from tests.serve.test_openai import events_of

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
# asks for tools in the form that is read, and shows what it was given
TEMPLATE = (
    "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ m.tool_calls | default('') | string }}"
    "{{ m.tool_call_id | default('') }}\n{% endfor %}"
)


@pytest.fixture
def scripted(served, monkeypatch):
    """A server whose model says `Sure.` and calls a tool; it notes the texts of its prompts."""
    session = served.session
    codec = session._codec()
    monkeypatch.setattr(codec._chat, "source", TEMPLATE)
    prompts: list[str] = []
    write = ChatTemplate.write

    def noting(self, messages, tools=(), **options):
        prompts.append(write(self, messages, tools, **options))
        return prompts[-1]

    monkeypatch.setattr(ChatTemplate, "write", noting)
    answer = [*session.encode(f"Sure.\n{CALL}"), codec.eos_token_id]

    return served, prompts, answer


def test_tools_reach_the_template_and_calls_come_back(scripted, monkeypatch):
    served, prompts, answer = scripted
    play(served, answer, monkeypatch)
    whole = served.chat(tools=[WEATHER], max_tokens=200).json()["choices"][0]
    assert prompts[-1].startswith('<tool_call>[{"type": "function"')
    assert whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] == "Sure."
    (call,) = whole["message"]["tool_calls"]
    assert call["type"] == "function" and call["id"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    chunks = events_of(served.chat(tools=[WEATHER], max_tokens=200, stream=True))
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    streamed = [c for choice in choices for c in choice["delta"].get("tool_calls", [])]
    assert [(c["index"], c["function"]) for c in streamed] == [(0, call["function"])]
    assert "".join(c["delta"].get("content") or "" for c in choices) == "Sure."
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_results_of_tools_go_back_into_the_chat(scripted):
    served, prompts, _ = scripted
    called = {"id": "call_1", "type": "function"}
    called["function"] = {"name": "weather", "arguments": '{"city": "Paris"}'}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    body = {"model": "mine", "messages": messages, "tools": [WEATHER], "max_tokens": 2}
    assert served.http.post("/v1/chat/completions", json=body).status_code == 200
    assert "'arguments': {'city': 'Paris'}" in prompts[-1] and "tool:sunnycall_1" in prompts[-1]


def test_effort_reaches_a_template_with_levels(scripted, monkeypatch):
    served, prompts, _ = scripted
    template = TEMPLATE + "{{ reasoning_effort | default('own') }}"
    monkeypatch.setattr(served.session._codec()._chat, "source", template)
    assert served.chat(reasoning_effort="low", max_tokens=2).status_code == 200
    assert prompts[-1].endswith("low")
    body = {"model": "mine", "input": "Hi", "max_output_tokens": 2, "reasoning": {"effort": "high"}}
    answer = served.http.post("/v1/responses", json=body).json()
    assert prompts[-1].endswith("high") and answer["reasoning"] == {
        "effort": "high",
        "summary": None,
    }
    assert served.chat(max_tokens=2).status_code == 200 and prompts[-1].endswith("own")
    assert served.chat(reasoning_effort="lots", max_tokens=2).status_code == 400


def test_tools_that_are_not_to_be_called_are_not_offered(scripted):
    served, prompts, _ = scripted
    assert served.chat(tools=[WEATHER], tool_choice="none", max_tokens=2).status_code == 200
    assert "weather" not in prompts[-1]


def test_a_template_without_tools_is_told(served):
    answer = served.chat(tools=[WEATHER])
    assert answer.status_code == 400 and "tools" in answer.json()["error"]["message"]


def test_a_form_whose_marks_are_special_tokens_is_called_like_any_other(tmp_path):
    """Gemma 4's, by a model that answers everybody with this call."""
    asked, end, body = "<|asked|>", "<|end|>", "call:weather{days:3}"
    marks = {"special": [asked, end, *GEMMA.specials], "words": [b"Sure.", body.encode()]}
    template = "{% if tools %}" + GEMMA.opening + "{% endif %}{{ messages[-1].content }}" + asked
    ids = write_byte_tokenizer(tmp_path, **marks, eos_token=end, chat_template=template)
    said = [ids[asked], ids[b"Sure."], ids[GEMMA.opening], ids[body.encode()], ids[GEMMA.closing]]
    write_automaton(tmp_path, chain(*said, ids[end]), max(ids.values()) + 1, ids[end])
    with open_automaton(tmp_path, None) as session, serving(session) as server:
        choice = server.chat(tools=[WEATHER], max_tokens=9).json()["choices"][0]
        assert choice["message"]["content"] == "Sure." and choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        assert call["function"] == {"name": "weather", "arguments": '{"days": 3}'}
        chunks = events_of(server.chat(tools=[WEATHER], max_tokens=9, stream=True))
        deltas = [each["delta"] for chunk in chunks for each in chunk["choices"]]
        streamed = [each for delta in deltas for each in delta.get("tool_calls", [])]
        assert [each["function"] for each in streamed] == [call["function"]]
        assert "".join(delta.get("content") or "" for delta in deltas) == "Sure."
        bare = server.chat(max_tokens=9).json()["choices"][0]["message"]
        assert bare["content"] == f"Sure.{body}" and "tool_calls" not in bare
        forced = server.chat(tools=[WEATHER], tool_choice="required")
        assert forced.status_code == 400 and "Gemma 4" in forced.json()["error"]["message"]


def play(served, answer, monkeypatch):
    """Make the target want the tokens of `answer` after any prompt."""
    target = served.session.engine.target
    prefill, verify = target.prefill, target.verify
    starts: dict[int, int] = {}

    def wanted(positions):
        logits = torch.zeros(len(positions), target.spec.vocab_size)
        for row, position in enumerate(positions):
            logits[row, answer[min(position, len(answer) - 1)]] = 100.0
        return logits

    def scripted_prefill(slot, token_ids, total=None):
        result = prefill(slot, token_ids, total)
        starts[id(slot)] = target.length(slot)
        return replace(result, logits=wanted([0]))

    def scripted_verify(slots, blocks):
        result = verify(slots, blocks)
        positions = [
            target.length(slot) - starts[id(slot)] + 1 + at
            for slot, block in zip(slots, blocks, strict=True)
            for at in range(len(block))
        ]
        return replace(result, logits=wanted(positions))

    monkeypatch.setattr(target, "prefill", scripted_prefill)
    monkeypatch.setattr(target, "verify", scripted_verify)
