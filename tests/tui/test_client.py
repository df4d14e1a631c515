"""The chat over HTTP, against a server on 127.0.0.1 that plays its part well or badly."""

import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dspark.chat.backend import ChatSettings
from dspark.chat.openai.answer_events import Written
from dspark.chat.openai.client import ServerBackend
from dspark.chat.openai.delta import Delta
from dspark.chat.openai.request import base_url
from dspark.config import SamplingChoice, ServerConfig, StopConfig
from dspark.errors import DSparkError, InputError, ServerError
from dspark.events import Finished, TextDelta
from dspark.http_client import proxy_for
from dspark_cli.main import run
from dspark_cli.plain_chat import run_plain_chat
from dspark_tui.app import DSparkApp

HELLO = [{"role": "user", "content": "Hello"}]
DONE = "[DONE]"


def delta(text: str = "", reason: str | None = None) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": reason}]})


USAGE = json.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}})
ANSWER = (delta("Grüß"), delta(" dich"), delta(reason="stop"), USAGE, DONE)


@dataclass
class Server:
    """What it streams, which models it has; then what it was asked."""

    lines: tuple[str, ...] = ANSWER
    models: tuple[dict[str, object], ...] = ({"id": "tiny", "max_model_len": 512},)
    status: int = 200
    key: str | None = None
    hold: threading.Event | None = None  # silence after the lines, until it is set
    body: bytes | None = None  # instead of the lines
    headers: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, object] = field(default_factory=dict)  # by the parameter that is refused
    refuses_more_than: int = 99  # messages, with the refusal of "full"
    list_status: int = 200
    url: str = ""
    bodies: list[dict[str, object]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    play: Server

    def do_GET(self) -> None:
        if self.play.key and self.headers["Authorization"] != f"Bearer {self.play.key}":
            self._json(401, {"error": {"message": "no"}})
        elif self.path.partition("?")[0] == "/v1/models":
            self._json(self.play.list_status, {"data": list(self.play.models)})
        else:
            self._json(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.play.bodies.append(body)
        if self.play.status != 200:
            self._json(self.play.status, {"error": {"message": "out of luck"}})
            return
        for name, refusal in self.play.refusals.items():
            if name in body or (
                name == "full" and len(body["messages"]) > self.play.refuses_more_than
            ):
                self._json(400, refusal)
                return
        self.send_response(200)
        for name, value in self.play.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.play.body is not None:
            self.wfile.write(self.play.body)
            return
        for line in self.play.lines:
            self.wfile.write(f"data: {line}\n\n".encode())
            self.wfile.flush()
        if self.play.hold is not None:
            self.play.hold.wait(20)

    def _json(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in self.play.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    play = Server()
    handler = type("Playing", (Handler,), {"play": play})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    listening.daemon_threads = True
    play.url = f"http://127.0.0.1:{listening.server_port}"
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
    thread.start()
    yield play
    if play.hold is not None:
        play.hold.set()
    listening.shutdown()
    listening.server_close()
    thread.join()


def loaded(server: Server, **config: object) -> ServerBackend:
    backend = ServerBackend(ServerConfig(server.url, **config))  # type: ignore[arg-type]
    list(backend.load())
    return backend


def ask(backend: ServerBackend, **sampling: object) -> Iterator[object]:
    return backend.answer(HELLO, SamplingChoice(**sampling), StopConfig(max_tokens=9))


def test_an_answer_comes_as_events_and_with_the_servers_own_counts(server):
    backend = loaded(server)
    info = backend.info
    assert (info.name, info.context_limit, info.tells_rounds) == ("tiny", 512, False)
    *events, finished = ask(backend, temperature=0.5, top_k=3)
    assert [type(event) for event in events] == [TextDelta, TextDelta]
    assert [piece.text for event in events for piece in event.pieces] == ["Grüß", " dich"]
    assert finished.stats.rounds == 0
    assert finished.text == "Grüß dich" and finished.reason == "stop_token"
    assert (finished.stats.prompt_tokens, finished.stats.new_tokens) == (7, 5)
    asked = server.bodies[0]
    assert asked["model"] == "tiny" and asked["messages"] == HELLO and asked["stream"] is True
    assert (asked["temperature"], asked["top_k"], asked["max_tokens"]) == (0.5, 3, 9)


def test_what_nobody_chose_is_left_to_the_server(server):
    *_, finished = loaded(server).answer(HELLO, SamplingChoice(), StopConfig(max_tokens=None))
    assert finished.text == "Grüß dich"
    assert set(server.bodies[0]) == {"model", "messages", "stream", "stream_options"}


def test_the_limit_of_tokens_is_told(server):
    server.lines = (delta("One", "length"), DONE)
    assert [*ask(loaded(server))][-1].reason == "max_tokens"


@pytest.mark.parametrize("lines", [(), (delta("One"), delta(" two"))])
def test_cancel_ends_it_at_once_while_the_server_is_silent(server, lines):
    server.lines, server.hold = lines, threading.Event()
    backend = loaded(server)
    threading.Timer(0.3, backend.cancel).start()
    *_, finished = ask(backend)
    assert not server.hold.is_set() and server.bodies
    assert finished.reason == "cancelled" and finished.text == ("One two" if lines else "")
    server.lines, server.hold = ANSWER, None
    assert [*ask(backend)][-1].text == "Grüß dich"


def test_cancel_before_the_first_event_asks_the_server_for_nothing(server):
    backend = loaded(server)
    answer = ask(backend)
    backend.cancel()
    (finished,) = answer
    assert finished.reason == "cancelled" and server.bodies == []
    assert [*ask(backend)][-1].text == "Grüß dich"


def failure(backend: ServerBackend) -> tuple[str, DSparkError]:
    shown = ""
    with pytest.raises(DSparkError) as caught:
        for event in ask(backend):
            assert not isinstance(event, Finished)
            shown += "".join(piece.text for piece in event.pieces)
    assert "\n" not in caught.value.message + caught.value.hint
    return shown, caught.value


def test_a_cut_stream_is_said_and_what_came_stays(server):
    server.lines = (delta("One"),)
    shown, error = failure(loaded(server))
    assert shown == "One" and "closed before the answer was complete" in error.message


def test_an_error_half_way_is_said(server):
    server.lines = (delta("One"), json.dumps({"error": {"message": "out of\nluck"}}))
    shown, error = failure(loaded(server))
    assert shown == "One" and error.message.endswith("failed during the answer: out of luck")


@pytest.mark.parametrize(
    ("status", "words"), [(404, "no model tiny: out of luck"), (500, "answered 500"), (429, "429")]
)
def test_a_refusal_is_one_line(server, status, words):
    server.status = status
    assert words in failure(loaded(server))[1].message


@pytest.mark.parametrize(
    ("after", "hint"),
    [
        ("20", "Try again in 20 seconds."),
        ("0.2", "Try again in 1 second."),
        ("Fri, 31 Dec 1999 23:59:59 GMT", "Try again in 1 second."),
        ("soon", "Try again later."),
    ],
)
def test_when_to_ask_again_is_told(server, after, hint):
    server.status, server.headers = 429, {"Retry-After": after}
    assert failure(loaded(server))[1].hint == hint


def test_an_address_that_has_moved_is_told(server):
    server.list_status, server.headers = 301, {"Location": "https://example.org/v1/models"}
    with pytest.raises(ServerError, match="has moved") as caught:
        loaded(server)
    assert "https://example.org/v1." in caught.value.hint


OPENAI = {
    "message": "Unsupported parameter",
    "param": "max_tokens",
    "code": "unsupported_parameter",
}
VLLM = {"message": "[{'type': 'extra_forbidden', 'loc': ('body', 'top_k'), 'input': 3}]"}
FASTAPI = [{"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs"}]


def test_a_parameter_that_is_refused_is_left_out_from_then_on(server):
    server.refusals = {
        "max_tokens": {"error": OPENAI},
        "top_k": VLLM,
        "stream_options": {"detail": FASTAPI},
        "temperature": {"error": "Unsupported value: 'temperature' does not support 0.5"},
    }
    backend = loaded(server)
    assert [*ask(backend, temperature=0.5, top_k=3, seed=4)][-1].text == "Grüß dich"
    assert len(server.bodies) == 5
    assert [*ask(backend, temperature=0.5, top_k=3, seed=4)][-1].text == "Grüß dich"
    assert len(server.bodies) == 6
    needed = {"model", "messages", "stream", "seed"}
    assert set(server.bodies[5]) == {*needed, "max_completion_tokens"}
    assert server.bodies[5]["max_completion_tokens"] == 9
    server.refusals["max_completion_tokens"] = {"error": "unknown: max_completion_tokens"}
    assert [*ask(backend, seed=4, temperature=0.5)][-1].text == "Grüß dich"
    assert set(server.bodies[-1]) == needed
    assert backend.info.refused == ("max_completion_tokens", "temperature", "top_k")


def test_a_server_that_refuses_to_stream_answers_in_one_piece(server):
    server.refusals = {"stream": {"error": {"message": "stream=true is not supported"}}}
    message = {"role": "assistant", "content": "Grüß dich"}
    answer = {"choices": [{"message": message, "finish_reason": "stop"}]}
    server.body = json.dumps(answer).encode()
    backend = loaded(server)
    assert [*ask(backend)][-1].text == "Grüß dich"
    assert set(server.bodies[-1]) == {"model", "messages", "max_tokens"}
    assert backend.info.refused == ()


@pytest.mark.parametrize(
    "refusal",
    [
        {"error": {"message": "max_tokens must be at most 8"}},
        {"error": {"message": "this model does not support images"}},
        {"error": {"message": "messages: unexpected role"}},
        [],
    ],
)
def test_another_refusal_is_not_tried_again(server, refusal):
    server.refusals = {"model": refusal}
    backend = loaded(server)
    failure(backend)
    assert len(server.bodies) == 1


def test_thinking_comes_apart_from_the_answer(server):
    thought = json.dumps({"choices": [{"delta": {"reasoning_content": "Hm, "}}]})
    server.lines = (thought, delta("yes"), delta(reason="stop"), DONE)
    *events, finished = ask(loaded(server))
    pieces = [(piece.text, piece.is_thinking) for event in events for piece in event.pieces]
    assert pieces == [("Hm, ", True), ("yes", False)]
    assert (finished.text, finished.thinking) == ("yes", "Hm, ")


@pytest.mark.parametrize(
    ("text", "answer", "thinking"),
    [
        ("<think>\nHm, 2 < 3\n</think>\n\nyes < no", "yes < no", "Hm, 2 < 3"),
        ("\n<thinking>Hm</thinking>yes", "yes", "Hm"),
        ("[THINK]Hm[/THINK]yes", "yes", "Hm"),
        ("<think>Hm", "", "Hm"),
        ("yes <think>no</think>", "yes <think>no</think>", ""),
        ("<answer>yes</answer>", "<answer>yes</answer>", ""),
        ("<thi", "<thi", ""),
    ],
)
def test_thinking_that_a_server_leaves_in_the_text(server, text, answer, thinking):
    """However the text is cut into chunks."""
    backend = loaded(server)
    for cut in (1, 3, len(text)):
        parts = [text[i : i + cut] for i in range(0, len(text), cut)]
        server.lines = (*map(delta, parts), delta(reason="stop"), DONE)
        *events, finished = ask(backend)
        assert (finished.text, finished.thinking.strip()) == (answer, thinking)
        told = "".join(p.text for event in events for p in event.pieces if not p.is_thinking)
        assert told + ("" if finished.ends_thinking else finished.tail) == answer


@pytest.mark.parametrize(
    "said",
    [
        {"code": "context_length_exceeded", "message": "too long"},
        {"type": "exceed_context_size_error", "message": "the request exceeds the size"},
        {"message": "This model's maximum context length is 20 tokens. You requested 30"},
    ],
)
def test_a_full_context_leaves_out_what_is_oldest(server, said, capsys):
    server.refuses_more_than = 3
    server.refusals = {"full": {"error": said}}
    run_plain_chat(loaded(server), ChatSettings(), io.BytesIO(b"1\n2\n3\n"))
    assert capsys.readouterr().out == "Grüß dich\n" * 3
    sent = [[message["content"] for message in body["messages"]] for body in server.bodies]
    assert sent[2:] == [["1", "Grüß dich", "2", "Grüß dich", "3"], ["2", "Grüß dich", "3"]]


def test_a_limit_of_tokens_that_is_too_large_leaves_out_nothing(server):
    message = "max_tokens is too large: 9. This model's maximum context length is 8 tokens"
    server.refusals = {"max_tokens": {"error": {"message": message}}}
    with pytest.raises(ServerError, match="max_tokens is too large"):
        list(ask(loaded(server)))
    assert len(server.bodies) == 1


async def test_the_screen_says_what_an_answer_lacks(server):
    from tests.tui.conftest import Chat

    server.lines = (json.dumps({"choices": [{"delta": {"reasoning": "Hm"}}]}), DONE)
    server.refusals = {"temperature": {"error": "unsupported: temperature"}}
    settings = ChatSettings(sampling=SamplingChoice(temperature=0.5))
    app = DSparkApp(ServerBackend(ServerConfig(server.url)), settings)
    async with app.run_test(size=(120, 24)) as pilot:
        chat = Chat(app, pilot)
        await chat.until(lambda: len(app.screen_stack) > 1)
        await chat.asked_and_answered("Hi")
        await chat.until_shown("only thinking, no answer · without temperature, which the server")
        await chat.asked_and_answered("Again")
    assert [message["content"] for message in server.bodies[-1]["messages"]] == ["Again"]


@pytest.mark.parametrize(
    ("delta", "reason", "words"),
    [
        (
            {"tool_calls": [{"function": {"name": "clock"}}]},
            "tool_calls",
            r"called a tool \(clock\)",
        ),
        ({"function_call": {"name": "clock"}}, "function_call", r"called a tool \(clock\)"),
        ({}, "tool_calls", "called a tool instead"),
        ({}, "content_filter", "content filter stopped tiny"),
    ],
)
def test_an_answer_without_words_is_said(server, delta, reason, words):
    choice = {"delta": delta, "finish_reason": reason}
    server.lines = (json.dumps({"choices": [choice]}), DONE)
    with pytest.raises(ServerError, match=words):
        list(ask(loaded(server)))


def test_an_answer_in_one_piece(server):
    message = {"role": "assistant", "content": "Grüß dich"}
    answer = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": None}
    server.body = json.dumps(answer).encode()
    server.headers = {"Content-Type": "application/json"}
    *events, finished = ask(loaded(server))
    assert [piece.text for event in events for piece in event.pieces] == ["Grüß dich"]
    assert finished.reason == "stop_token" and finished.stats.decode_tokens_per_second == 0


def test_only_what_comes_bit_by_bit_has_a_rate(monkeypatch):
    """Three deltas a tenth of a second apart, then the same at once; five tokens each."""
    moments = iter([0.0, 1.0, 1.1, 1.2, 10.0, 11.0, 11.0001, 11.0002])
    monkeypatch.setattr("dspark.chat.openai.answer_events.time.perf_counter", lambda: next(moments))
    for decode, rate in ((0.2, 4 / 0.2), (0.0, 0.0)):
        written = Written()
        for text in "abc":
            list(written.take(Delta(text, usage={"completion_tokens": 5})))
        stats = written.end("m").stats
        assert stats.decode_seconds == pytest.approx(decode)
        assert stats.prefill_seconds == pytest.approx(1.0, abs=1e-3)
        assert stats.rounds == 0  # a server tells none
        assert stats.decode_tokens_per_second == pytest.approx(rate)


def test_a_connection_that_ends_inside_the_body_is_told(server):
    backend = loaded(server)
    server.headers = {"Content-Length": "9999"}
    server.body = f"data: {delta('One')}\n\n".encode()
    shown, error = failure(backend)
    assert shown == "One" and "closed before the answer was complete" in error.message
    server.body = f"data: {delta('One', 'stop')}\n\n".encode()  # closed badly, but at its end
    assert [*ask(backend)][-1].text == "One"


def test_an_answer_ends_though_the_connection_stays_open(server, monkeypatch):
    monkeypatch.setattr("dspark.chat.openai.client.REST_SECONDS", 0.1)
    server.lines, server.hold = (delta("One", "stop"),), threading.Event()
    assert [*ask(loaded(server))][-1].text == "One"
    assert not server.hold.is_set()


def test_loading_is_given_up_at_once():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        backend = ServerBackend(ServerConfig(f"127.0.0.1:{silent.getsockname()[1]}"))
        threading.Timer(0.3, backend.cancel).start()
        began = time.monotonic()
        with pytest.raises(ServerError, match="was cancelled"):
            list(backend.load())
        assert time.monotonic() - began < 5


def test_nothing_is_left_pending(server):
    """Python tells on stderr of a loop that was closed too early."""
    script = (
        "import sys\n"
        "from dspark_cli.main import run\n"
        f"sys.exit(run(['chat', '--server', {server.url!r}]))"
    )
    asked = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        input="Hi\nAgain\n",
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )
    assert asked.stdout == "Grüß dich\nGrüß dich\n"
    assert all(line.startswith("tiny") for line in asked.stderr.splitlines()), asked.stderr


def test_silence_ends_at_the_time_limit(server):
    server.lines, server.hold = (delta("One"),), threading.Event()
    shown, error = failure(loaded(server, silent_seconds=0.3))
    assert shown == "One" and "too long" in error.message


def test_the_key_comes_from_the_environment(server, monkeypatch):
    server.key = "secret"
    with pytest.raises(ServerError) as caught:
        loaded(server)
    assert "OPENAI_API_KEY" in caught.value.hint
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert loaded(server).info.name == "tiny"


@pytest.mark.parametrize("key", ["secret\n", " secret ", "secret\r\n"])
def test_blanks_around_the_key_are_passed_over(server, monkeypatch, key):
    server.key = "secret"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert loaded(server).info.name == "tiny"


@pytest.mark.parametrize(
    ("key", "words"),
    [("sk-äbc", "'ä' at position 4"), ("sk-a\nb", "position 5"), ("Bearer x", "position 7")],
)
def test_a_key_that_no_header_can_carry_is_named(server, monkeypatch, key, words):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match="OPENAI_API_KEY") as caught:
        loaded(server)
    assert words in caught.value.message and key not in caught.value.message


def test_proxies_of_others_do_not_break_it(server, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9/")
    monkeypatch.setenv("NO_PROXY", "localhost,[::1],fd07:b51a:cc66:f0::/64")
    assert [*ask(loaded(server))][-1].text == "Grüß dich"


def test_a_proxy_that_does_not_answer_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ServerError, match=r"through the proxy http://127\.0\.0\.1:9$") as caught:
        list(ServerBackend(ServerConfig("http://192.0.2.1:8000")).load())
    assert "NO_PROXY" in caught.value.hint
    assert proxy_for("http://127.0.0.1:8000") == proxy_for("https://192.0.2.1") == ""


def test_a_server_without_https_is_told_apart_from_none(server):
    with pytest.raises(ServerError, match="no secure connection"):
        list(ServerBackend(ServerConfig(server.url.replace("http:", "https:"))).load())


def test_data_that_is_not_what_its_header_says_is_told(server):
    backend = loaded(server)
    server.headers = {"Content-Encoding": "gzip"}
    assert "cannot be decompressed" in failure(backend)[1].message


def test_nobody_listens():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        backend = ServerBackend(ServerConfig(f"127.0.0.1:{unused.getsockname()[1]}"))
        with pytest.raises(ServerError, match="nothing answers"):
            list(backend.load())


def test_several_models_ask_for_a_choice(server):
    server.models = ({"id": "a"}, {"id": "b"})
    with pytest.raises(InputError, match="several models: a, b"):
        loaded(server)
    assert loaded(server, model="b").info.context_limit == 0


def test_a_model_that_the_server_lacks_is_refused_before_the_first_prompt(server):
    server.models = ({"id": "llama:latest"}, {"id": "models/gem"}, {"id": "qwen", "object": None})
    with pytest.raises(InputError, match="has no model quen") as caught:
        loaded(server, model="quen")
    assert caught.value.hint == "Did you mean qwen? It has llama:latest, models/gem, qwen."
    for usual in ("llama", "llama:latest", "gem", "models/gem", "qwen:online"):
        assert loaded(server, model=usual).info.name == usual


def test_a_server_without_a_list_of_models_takes_any_name(server):
    server.list_status = 404
    assert loaded(server, model="any").info.name == "any"
    with pytest.raises(ServerError, match="has no list of models"):
        loaded(server)


def test_sizes_of_the_context_under_other_names(server):
    server.models = ({"id": "a", "max_model_len": None, "context_length": 4096},)
    assert loaded(server).info.context_limit == 4096


def test_urls():
    assert base_url("localhost:8000") == "http://localhost:8000/v1"
    assert base_url("https://example.org/api/v2/") == "https://example.org/api/v2"
    assert base_url("https://example.org/v1/chat/completions/") == "https://example.org/v1"
    assert base_url(" example.org?version=2 ") == "http://example.org/v1?version=2"
    for wrong in ("ftp://example.org", "http://", "http://host:port", "http://a b", "http://\x07"):
        with pytest.raises(InputError, match="is not a valid URL"):
            base_url(wrong)


def test_a_password_and_a_query_go_to_the_server_and_into_no_message(server):
    server.url = server.url.replace("//", "//me:secret@") + "/v1?version=2"
    backend = loaded(server)
    assert "secret" not in backend.info.device and "127.0.0.1" in backend.info.device
    assert [*ask(backend)][-1].text == "Grüß dich"


def test_the_plain_loop_says_that_there_are_no_colours(server, capsys):
    run_plain_chat(loaded(server), ChatSettings(), io.BytesIO(b"Hi\nAgain\n"))
    out, err = capsys.readouterr()
    assert out == "Grüß dich\nGrüß dich\n"
    assert "no token colours" in err and "context 12/512" in err
    assert [message["content"] for message in server.bodies[1]["messages"]] == [
        "Hi",
        "Grüß dich",
        "Again",
    ]


@pytest.mark.parametrize("size", [(100, 24), (40, 12)])
async def test_the_screen_says_that_there_are_no_colours(server, size):
    from tests.tui.conftest import Chat

    app = DSparkApp(ServerBackend(ServerConfig(server.url)), ChatSettings())
    async with app.run_test(size=size) as pilot:
        chat = Chat(app, pilot)
        await chat.until(lambda: len(app.screen_stack) > 1)
        await chat.asked_and_answered("Hi")
        await chat.until_shown("Grüß dich", "no colours")


async def test_escape_cancels_and_what_came_stays(server):
    from tests.tui.conftest import Chat

    server.lines, server.hold = (delta("One"), delta(" two")), threading.Event()
    app = DSparkApp(ServerBackend(ServerConfig(server.url)), ChatSettings())
    async with app.run_test(size=(100, 24)) as pilot:
        chat = Chat(app, pilot)
        await chat.until(lambda: len(app.screen_stack) > 1 and chat.screen.phase == "ready")
        await chat.ask("Hi")
        await chat.until_shown("One two")
        await pilot.press("escape")
        await chat.until(lambda: chat.screen.turn is None)
        await chat.until_shown("One two", "stopped")


@pytest.mark.parametrize(
    "options",
    [["--model", "x"], ["--server", "localhost:1", "--draft", "x"], ["--server", "ftp://x"]],
)
def test_options_that_contradict_each_other_are_refused(options, capsys):
    assert run(["chat", *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
