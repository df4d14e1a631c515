"""/v1/responses: the library's answers as items, whole and as events that build the same up."""

import json

import pytest

from tests.serve.test_openai import TOKENS
from tests.serve.test_tools import CALL, WEATHER, play, scripted  # noqa: F401


def ask(served, prompt="Hi", **fields):
    return served.http.post(
        "/v1/responses", json={"model": served.session.name, "input": prompt, **fields}
    )


def named_events(answer) -> list[dict]:
    events = []
    for block in answer.text.strip().split("\n\n"):
        kind, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def rebuilt(events) -> list[dict]:
    """The output, from additions, deltas and ends alone; each end must say what was built."""
    items: list[dict] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            items.append({**event["item"]})
        elif kind == "content_part.added":
            assert event["item_id"] == items[-1]["id"] and event["content_index"] == 0
            items[-1]["content"] = [{**event["part"]}]
        elif kind in ("output_text.delta", "reasoning_text.delta"):
            items[-1]["content"][0]["text"] += event["delta"]
        elif kind in ("output_text.done", "reasoning_text.done"):
            assert event["text"] == items[-1]["content"][0]["text"]
        elif kind == "function_call_arguments.delta":
            items[-1]["arguments"] += event["delta"]
        elif kind == "output_item.done":
            assert {**items[-1], "status": 0} == {**event["item"], "status": 0}
            items[-1] = event["item"]
    return items


def without_ids(items: list[dict]) -> list[dict]:
    return [{**item, "id": "", "call_id": ""} for item in items]


def test_a_response_is_the_librarys_whole_and_streamed(served, open_pair):
    expected = open_pair().generate_text("Hi", max_tokens=TOKENS, plain=True)
    whole = ask(served, max_output_tokens=TOKENS).json()
    assert (whole["object"], whole["status"]) == ("response", "incomplete")
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
    (message,) = whole["output"]
    assert message["role"] == "assistant"
    (part,) = message["content"]
    assert (part["type"], part["text"]) == ("output_text", expected)
    used = whole["usage"]
    assert used["output_tokens"] == TOKENS
    assert used["input_tokens"] == len(served.session.encode_prompt("Hi"))
    assert used["total_tokens"] == used["input_tokens"] + TOKENS

    events = named_events(ask(served, max_output_tokens=TOKENS, stream=True))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert set(kinds[4:-4]) == {"output_text.delta"} and len(kinds) > 12
    assert without_ids(rebuilt(events)) == without_ids(whole["output"])
    assert events[-1]["response"]["output"] == rebuilt(events)
    assert events[0]["response"]["status"] == "in_progress"


def test_instructions_and_items_are_a_chat(served, open_pair):
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "One"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "1"}]},
        {"role": "user", "content": "Two"},
    ]
    answer = ask(served, items, instructions="Count.", max_output_tokens=TOKENS).json()
    chat = [("system", "Count."), ("user", "One"), ("assistant", "1"), ("user", "Two")]
    expected = open_pair().generate_text(
        [{"role": role, "content": text} for role, text in chat], max_tokens=TOKENS
    )
    assert answer["output"][0]["content"][0]["text"] == expected


def test_calls_are_items_and_their_results_go_back(scripted, monkeypatch):  # noqa: F811
    served, prompts, answer = scripted
    tool = {"type": "function", **WEATHER["function"]}
    items = [
        {"role": "user", "content": "Weather?"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "X"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
    ]
    assert ask(served, items, tools=[tool], max_output_tokens=2).status_code == 200
    assert "'arguments': {'city': 'X'}" in prompts[-1] and "tool:sunnyc1" in prompts[-1]
    play(served, answer, monkeypatch)
    whole = ask(served, tools=[tool], max_output_tokens=200).json()
    message, call = whole["output"]
    assert message["content"][0]["text"] == "Sure." and whole["status"] == "completed"
    assert (call["type"], call["name"]) == ("function_call", "weather")
    assert json.loads(call["arguments"]) == {"city": "Paris"} and call["call_id"]
    events = named_events(ask(served, tools=[tool], max_output_tokens=200, stream=True))
    assert without_ids(rebuilt(events)) == without_ids(whole["output"])
    kinds = [event["type"] for event in events]
    assert "response.function_call_arguments.done" in kinds and kinds[-1] == "response.completed"


def test_a_schema_and_logprobs(served):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    wanted = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    include = ["message.output_text.logprobs"]
    whole = ask(served, text=wanted, include=include, top_logprobs=1).json()
    (part,) = whole["output"][0]["content"]
    assert json.loads(part["text"]).keys() == {"a"}
    assert "".join(each["token"] for each in part["logprobs"]) == part["text"]
    assert all(len(each["top_logprobs"]) == 1 for each in part["logprobs"])
    assert whole["text"]["format"]["schema"] == schema
    events = named_events(ask(served, text=wanted, include=include, top_logprobs=1, stream=True))
    deltas = [e["logprobs"] for e in events if e["type"] == "response.output_text.delta"]
    told = [each for delta in deltas for each in delta]
    assert told == part["logprobs"][: len(told)] and told


REFUSED = {
    "previous_response_id": "resp_1",
    "conversation": "conv_1",
    "background": True,
    "truncation": "auto",
    "reasoning": {"effort": "high"},
    "max_tokens": 5,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_heeded_is_refused_by_its_name(served, name):
    answer = ask(served, **{name: REFUSED[name]})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    "fields",
    [
        {"input": []},
        {"input": [{"type": "item_reference", "id": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"tools": [{"type": "web_search"}]},
        {"include": ["file_search_call.results"]},
        {"text": {"format": {"type": "json_schema", "name": "x"}}},
        {"model": "other"},
    ],
    ids=str,
)
def test_what_cannot_be_done_is_told(served, fields):
    answer = ask(served, **{"max_output_tokens": 2, **fields})
    assert answer.status_code in (400, 404) and answer.json()["error"]["message"]


def test_a_response_that_fails_says_so(served, monkeypatch):
    def failing(slot, token_ids, total=None):
        raise RuntimeError("a fault in the forward")

    monkeypatch.setattr(served.session.engine.target, "prefill", failing)
    assert ask(served).status_code == 500
    events = named_events(ask(served, stream=True))
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
