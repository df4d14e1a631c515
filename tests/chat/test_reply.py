"""Bodies of answers as servers send them: what of them is text, thinking, an end or a fault."""

import json
from typing import Any

import pytest

from dspark.chat.openai.reply import Reply
from dspark.errors import ServerError

STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def part(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def whole(**message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def stream(*chunks: Any, end: bytes = b"data: [DONE]\n\n") -> bytes:
    lines = (json.dumps(chunk, ensure_ascii=False) for chunk in chunks)
    return b"".join(f"data: {line}\n\n".encode() for line in lines) + end


def read(body: bytes, size: int = 7) -> tuple[str, str]:
    """Text and thinking of a body that comes in pieces of a few bytes."""
    reply = Reply("server")
    deltas = []
    for start in range(0, len(body), size):
        deltas += reply.take(body[start : start + size])
        if reply.is_done:
            break
    if not reply.is_done:
        deltas += reply.end()
    assert reply.is_complete
    return "".join(d.text for d in deltas), "".join(d.thinking for d in deltas)


def fault(body: bytes) -> str:
    with pytest.raises(ServerError) as caught:
        read(body)
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        stream(part(content="hel"), part(content="lo"), STOP),
        stream(part(content="hel"), part(content="lo"), STOP, end=b""),
        stream(part(content="hello"), end=b"data: [DONE]"),
        stream(part(content="hello"), STOP, end=b"").rstrip(),
        stream(part(content="hello"), STOP).replace(b"\n\n", b"\n"),
        stream(part(content="hello"), STOP).replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf: hi\n\nretry: 3\n\n" + stream(part(content="hello"), STOP),
        b'data: {"choices":\ndata: [{"delta": {"content": "hello"}}]}\n\ndata: [DONE]\n\n',
        json.dumps(whole(content="hello")).encode(),
        b"\xef\xbb\xbf\n " + json.dumps(whole(content="hello"), indent=2).encode(),
        stream(whole(content="hello")),
        stream(part(content=[{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}])),
        stream(part(content=[{"type": "image_url", "image_url": {}}, "hello", {"text": None}])),
        stream(part(content=None, refusal="hello"), STOP),
        stream(part(role="assistant", content=None, tool_calls=None), part(content="hello"), STOP),
        stream({"choices": None}, {"choices": []}, {}, {"choices": [None]}, part(content="hello")),
        stream(
            {"choices": [{"delta": None, "finish_reason": None}], "error": None, "usage": None},
            part(content="hello"),
            STOP,
        ),
    ],
)
def test_every_form_of_one_answer(body):
    assert read(body) == ("hello", "")
    assert read(body, len(body)) == ("hello", "")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085"])
def test_line_separators_are_text(mark):
    assert read(stream(part(content=f"one{mark}two"), STOP)) == (f"one{mark}two", "")


@pytest.mark.parametrize(
    "thought",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"reasoning_text": "hm"},
        {"thinking": "hm"},
        {"reasoning": "hm", "reasoning_content": "hm"},
        {"reasoning": None, "thinking": "hm"},
        {"reasoning": {"effort": "low"}, "thinking": "hm"},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
    ],
)
def test_thinking_is_told_apart(thought):
    both = stream(
        part(content="", **{"reasoning": None, **thought})
        if "content" not in thought
        else part(**thought),
        part(content="yes"),
        STOP,
    )
    assert read(both) == ("yes", "hm")
    assert read(json.dumps(whole(**{"content": "yes", **thought})).encode())[1] == "hm"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (stream(part(content="one"), end=b""), "closed before the answer was complete"),
        (stream(part(content="one"), end=b'data: {"cho'), "closed before the answer was complete"),
        (stream({}, end=b""), "closed the connection without an answer"),
        (b"", "closed the connection without an answer"),
        (b"<html>hello</html>", "sent neither events nor JSON"),
        (b"data: hello\n\n", "sent invalid JSON"),
        (b"data: [1]\n\n", "sent JSON that is not an object"),
        (b'{"choices": [', "sent invalid JSON"),
        (b'{"model": "m"}', "sent JSON without an answer"),
        (b'{"detail": "no such route"}', "sent JSON without an answer: no such route"),
        (b"[" * 100_000, "sent invalid JSON"),
        (stream({"choices": {"0": {}}}), "choices is an object"),
        (stream({"choices": "none"}), "choices is a string"),
        (stream({"choices": [7]}), "a choice is 7"),
        (stream({"choices": [{"delta": ["a"]}]}), "message is a list"),
        (stream(part(content={"a": 1})), "content is an object"),
        (stream(part(content=True)), "content is true"),
        (stream(part(content="one"), {"error": {"message": "out\nof \x1b[2J luck"}}),
         "failed during the answer: out of ␛[2J luck"),
        (stream({"error": "out of luck"}), "failed during the answer: out of luck"),
        (stream({"object": "error", "message": "out of luck"}), "answer: out of luck"),
        (b'event: error\ndata: {"message": "out of luck"}\n\n', "answer: out of luck"),
        (b'error: {"message": "out of luck"}\n\n', "answer: out of luck"),
        (stream({"choices": [{"delta": {}, "finish_reason": "error"}]}), "failed during"),
        (stream({"detail": [{"loc": ["body"], "msg": "wrong"}], "object": "error"}), ": wrong"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_said_in_one_line(body, words):
    assert words in fault(body)
