"""What goes wrong at one client is told to it in OpenAI's form, and does not reach the others."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serve.test_openai import TOKENS, slow_down

JSON = {"content-type": "application/json"}
BROKEN = {
    "cut": b'{"model": "mine", "mess',
    "empty": b"",
    "no object": b"[1, 2]",
    "a number": b"1",
    "invalid UTF-8": b'{"model": "mine", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "too deep": b"[" * 200_000,
    "half a character": b'{"model": "mine", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "half a character as name": b'{"model": "\\ud800", "messages": [{"role": "user"}]}',
    "NaN": b'{"model": "mine", "temperature": NaN, "messages": [{"role": "user"}]}',
    "a long number": b'{"model": "mine", "max_tokens": ' + b"9" * 5000 + b', "messages": []}',
    "an unknown role": b'{"model": "mine", "messages": [{"role": "robot", "content": "x"}]}',
}


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_body_is_told_in_openais_form(shared, path, name):
    answer = shared.http.post(f"/v1/{path}", content=BROKEN[name], headers=JSON)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
    assert "\n" not in error["message"] and len(error["message"]) < 300


def test_others_are_unharmed_by_broken_bodies(shared, open_pair):
    expected = open_pair().generate_text("Hi", max_tokens=TOKENS, plain=True)

    def ask(number: int) -> str:
        if number % 2:
            body = [*BROKEN.values()][number % len(BROKEN)]
            return shared.http.post("/v1/completions", content=body, headers=JSON).text
        return shared.chat(max_tokens=TOKENS).json()["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(ask, range(16)))
    assert texts[::2] == [expected] * 8


def test_a_client_that_does_not_read_holds_nobody_up(shared, open_pair):
    """Its answer with all rounds is far longer than what a socket's buffers take."""
    expected = open_pair().generate_text("Hi", max_tokens=TOKENS, plain=True)
    host, port = shared.url.removeprefix("http://").split(":")
    message = {"role": "user", "content": "x"}
    body = json.dumps(
        {"model": "mine", "messages": [message], "stream": True, "dspark": {"rounds": True},
         "n": 16, "temperature": 1.0, "max_tokens": 200, "logprobs": True, "top_logprobs": 20}
    ).encode()  # fmt: skip
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection((host, int(port))) as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        while not shared.num_requests:
            time.sleep(0.01)
        answer = shared.chat(max_tokens=TOKENS).json()
        assert answer["choices"][0]["message"]["content"] == expected
    shared.until_idle()
    assert shared.chat(max_tokens=TOKENS).json()["choices"] == answer["choices"]


def test_a_client_that_vanishes_frees_its_request_within_a_round(served, monkeypatch):
    slow_down(served, monkeypatch)
    engine = served.session.engine
    steps_after: list[int] = []
    cancel, step = engine.cancel, engine.step
    monkeypatch.setattr(engine, "cancel", lambda i: (cancel(i), steps_after.append(0))[0])

    def counted():
        events = step()
        if steps_after and engine.num_requests:
            steps_after.append(1)
        return events

    monkeypatch.setattr(engine, "step", counted)
    body = {"model": "mine", "prompt": "Hi", "max_tokens": 10**6, "stream": True}
    with served.http.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    served.until_idle()
    assert steps_after and sum(steps_after) <= 1  # the step that was under way
    engine._caches.check_idle()


def test_a_message_names_a_wrong_model_of_any_length(shared):
    answer = shared.chat(model="x" * 10_000)
    assert answer.status_code == 404 and len(answer.json()["error"]["message"]) < 300
