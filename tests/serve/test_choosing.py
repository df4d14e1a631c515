"""What changes or tells the choice of tokens: biases, penalties, log-probabilities, JSON schemas,
tools that must be called. Each with and without drafts."""

import json
import math

import pytest

from tests.serve.test_openai import events_of, text_of
from tests.serve.test_tools import WEATHER, scripted  # noqa: F401

PLAIN = {"plain": True}
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["small", "large"]}, "sure": {"type": "boolean"}},
    "required": ["kind", "sure"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "kind", "schema": SCHEMA, "strict": True}}


def content(answer) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "rules",
    [
        {"logit_bias": {"65": 100}},
        {"presence_penalty": 2, "frequency_penalty": 1.5},
        {"repetition_penalty": 2.5},
    ],
    ids=str,
)
def test_rules_change_the_text_alike_with_and_without_drafts(served, rules):
    free = content(served.chat(max_tokens=20))
    for sampling in ({}, {"temperature": 0.8, "seed": 4}):
        drafted = content(served.chat(max_tokens=20, **rules, **sampling))
        assert drafted == content(served.chat(max_tokens=20, dspark=PLAIN, **rules, **sampling))
        assert drafted != free
    if "logit_bias" in rules:
        assert content(served.chat(max_tokens=4, **rules)) == served.session.decode([65] * 4)


def test_a_bias_of_no_token_is_told(served):
    for key in ("hello", "-1", "1000000", "9" * 5000):
        answer = served.chat(logit_bias={key: 1})
        assert answer.status_code == 400 and "logit_bias" in answer.json()["error"]["message"]


def test_logprobs_are_the_targets_whole_streamed_and_plain(served):
    asked = {"logprobs": True, "top_logprobs": 2, "max_tokens": 12, "temperature": 0.7, "seed": 1}
    whole = served.chat(**asked).json()["choices"][0]
    told = whole["logprobs"]["content"]
    raw = b"".join(bytes(each["bytes"]) for each in told)
    assert raw.decode(errors="replace") == whole["message"]["content"]
    known_bytes = {served.session.token_bytes(i): i for i in range(256)}
    ids = served.session.encode_prompt("Hi")
    for each in told:
        token_id = known_bytes[bytes(each["bytes"])]
        known = served.session.next_logits(ids).log_softmax(-1)
        assert each["logprob"] == pytest.approx(float(known[token_id]), abs=1e-4)
        assert [t["logprob"] for t in each["top_logprobs"]] == pytest.approx(
            known.topk(2).values.tolist(), abs=1e-4
        )
        assert bytes(each["bytes"]).decode(errors="replace") == each["token"]
        ids.append(token_id)
    plain = served.chat(**asked, dspark=PLAIN).json()["choices"][0]
    assert plain["logprobs"] == whole["logprobs"]
    chunks = events_of(served.chat(**asked, stream=True))
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    streamed = [t for c in choices if c.get("logprobs") for t in c["logprobs"]["content"]]
    assert streamed == told
    assert "logprobs" not in json.dumps(events_of(served.chat(max_tokens=3, stream=True)))
    assert served.chat(top_logprobs=2).status_code == 400


def test_logprobs_of_completions(served):
    body = {"model": "mine", "prompt": ["abc", "xyz"], "max_tokens": 6, "logprobs": 3}
    whole = served.http.post("/v1/completions", json=body).json()["choices"]
    for choice in whole:
        told = choice["logprobs"]
        assert len(told["tokens"]) == 6 and told["text_offset"] == list(range(6))
        assert all(len(top) == 3 for top in told["top_logprobs"])
        for token, logprob, top in zip(
            told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True
        ):
            assert logprob == top[token] == max(top.values()) < 0  # greedy
            assert sum(map(math.exp, top.values())) <= 1
    streamed = events_of(served.http.post("/v1/completions", json={**body, "stream": True}))
    for index, choice in enumerate(whole):
        parts = [c["logprobs"] for e in streamed for c in e["choices"] if c["index"] == index]
        told = [part for part in parts if part]
        for name, values in choice["logprobs"].items():
            assert [value for part in told for value in part[name]] == values


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 2}, {"temperature": 1.5}])
def test_an_answer_by_a_schema_is_valid(served, sampling):
    pytest.importorskip("llguidance")
    asked = {"response_format": FORMAT, "max_tokens": 200, **sampling}
    for stream in (False, True):
        answer = served.chat(stream=stream, **asked)
        value = json.loads(text_of(events_of(answer)) if stream else content(answer))
        assert set(value) == {"kind", "sure"} and value["kind"] in ("small", "large")
        assert type(value["sure"]) is bool
    if sampling != {"temperature": 1.5}:
        assert content(served.chat(**asked)) == content(served.chat(**asked, dspark=PLAIN))
    whole = served.chat(**asked).json()["choices"][0]
    assert whole["finish_reason"] == "stop"


def test_any_object_is_json_unless_cut(served):
    pytest.importorskip("llguidance")
    asked = {"response_format": {"type": "json_object"}, "temperature": 1.0, "max_tokens": 400}
    choice = served.chat(**asked, seed=5, frequency_penalty=1).json()["choices"][0]
    text = choice["message"]["content"]
    assert text.startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)


def test_what_no_grammar_can_be_is_told(served):
    pytest.importorskip("llguidance")
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    refused = served.chat(response_format=bad)
    assert refused.status_code == 400 and "schema" in refused.json()["error"]["message"]
    nameless = {"type": "json_schema", "json_schema": {"name": "x"}}
    assert served.chat(response_format=nameless).status_code == 400


def test_without_the_library_a_schema_is_refused_in_one_line(served, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    answer = served.chat(response_format={"type": "json_object"})
    error = answer.json()["error"]
    assert answer.status_code == 400 and "pip install" in error["message"]
    assert served.chat(max_tokens=3).status_code == 200


def test_a_tool_that_must_be_called_is_called(scripted, monkeypatch):  # noqa: F811
    pytest.importorskip("llguidance")
    served, _, _ = scripted
    parameters = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    other = {"type": "function", "function": {"name": "other"}}
    named = {"type": "function", "function": {"name": "weather"}}
    for choice, tools in (("required", [tool]), (named, [other, tool])):
        answer = served.chat(tools=tools, tool_choice=choice, max_tokens=300, temperature=0.9)
        message = answer.json()["choices"][0]["message"]
        (call,) = message["tool_calls"]
        assert call["function"]["name"] == "weather" and message["content"] is None
        assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")
    missing = served.chat(tools=[WEATHER], tool_choice={**named, "function": {"name": "gone"}})
    assert missing.status_code == 400 and "gone" in missing.json()["error"]["message"]
    assert served.chat(tool_choice="required").status_code == 400
    both = served.chat(tools=[tool], response_format={"type": "json_object"})
    assert both.status_code == 400 and "tools" in both.json()["error"]["message"]
