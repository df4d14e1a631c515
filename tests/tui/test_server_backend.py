"""The chat over HTTP, against a server on 127.0.0.1 that plays its part well or badly."""

import io
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dspark.config import SamplingChoice, ServerConfig, StopConfig
from dspark.errors import DSparkError, InputError, ServerError
from dspark.events import Finished
from dspark_cli.main import run
from dspark_cli.plain_chat import run_plain_chat
from dspark_tui.app import DSparkApp
from dspark_tui.backend import ChatSettings
from dspark_tui.server_backend import ServerBackend, base_url

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
    url: str = ""
    bodies: list[dict[str, object]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    play: Server

    def do_GET(self) -> None:
        if self.play.key and self.headers["Authorization"] != f"Bearer {self.play.key}":
            self._json(401, {"error": {"message": "no"}})
        elif self.path == "/v1/models":
            self._json(200, {"data": list(self.play.models)})
        else:
            self._json(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.play.bodies.append(body)
        if self.play.status != 200:
            self._json(self.play.status, {"error": {"message": "out of luck"}})
            return
        self.send_response(200)
        self.end_headers()
        for line in self.play.lines:
            self.wfile.write(f"data: {line}\n\n".encode())
            self.wfile.flush()
        if self.play.hold is not None:
            self.play.hold.wait(20)

    def _json(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
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
    assert (info.name, info.context_limit, info.is_server) == ("tiny", 512, True)
    *events, finished = ask(backend, temperature=0.5, top_k=3)
    assert [piece.text for event in events for piece in event.pieces] == ["Grüß", " dich"]
    assert finished.text == "Grüß dich" and finished.reason == "stop_token"
    assert (finished.stats.prompt_tokens, finished.stats.new_tokens) == (7, 5)
    asked = server.bodies[0]
    assert asked["model"] == "tiny" and asked["messages"] == HELLO and asked["stream"] is True
    assert (asked["temperature"], asked["top_k"], asked["max_tokens"]) == (0.5, 3, 9)


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
    assert shown == "One" and "broke off" in error.message


def test_an_error_half_way_is_said(server):
    server.lines = (delta("One"), json.dumps({"error": {"message": "out of\nluck"}}))
    shown, error = failure(loaded(server))
    assert shown == "One" and error.message.endswith("failed half-way: out of luck")


@pytest.mark.parametrize(
    ("status", "words"), [(404, "no model tiny: out of luck"), (500, "status 500"), (429, "429")]
)
def test_a_refusal_is_one_line(server, status, words):
    server.status = status
    assert words in failure(loaded(server))[1].message


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


def test_urls():
    assert base_url("localhost:8000") == "http://localhost:8000/v1"
    assert base_url("https://example.org/api/v2/") == "https://example.org/api/v2"
    for wrong in ("ftp://example.org", "http://", "http://host:port"):
        with pytest.raises(InputError):
            base_url(wrong)


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
