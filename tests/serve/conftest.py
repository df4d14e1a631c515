"""A server on a free port, over a tiny pair."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

import dspark
from dspark import hub
from dspark.config import ServeConfig
from dspark.engine.session import Session, open_session
from dspark.hub import PairFiles
from dspark.progress import follow

CPU = dspark.RuntimeConfig("cpu", "float32")
WHOLE = dspark.EngineConfig(schedule=dspark.ScheduleConfig("full"))


@dataclass
class Served:
    session: Session
    http: httpx.Client
    url: str

    @property
    def num_requests(self) -> int:
        return self.session.engine.num_requests

    def until_idle(self) -> None:
        deadline = time.monotonic() + 20
        while self.num_requests:
            assert time.monotonic() < deadline, "the server is still decoding"
            time.sleep(0.01)

    def chat(self, prompt: str = "Hi", **fields: object) -> httpx.Response:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.session.name, "messages": messages, **fields}
        return self.http.post("/v1/chat/completions", json=body)


@contextmanager
def serving(session: Session, config: ServeConfig = ServeConfig()) -> Iterator[Served]:
    import uvicorn

    from dspark.serve.app import make_app

    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = uvicorn.Config(
            make_app(session, config), log_level="critical", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                yield Served(session, client, url)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def open_pair(tiny_chat_dir: Path, make_tiny_head) -> Iterator[Callable[[], Session]]:
    """Opens the tiny pair anew, as often as it is called."""
    hub.register("mine", str(tiny_chat_dir), str(make_tiny_head(tiny_chat_dir)))
    opened: list[Session] = []

    def open_one() -> Session:
        opened.append(dspark.load("mine", runtime=CPU, engine=WHOLE))
        return opened[-1]

    yield open_one
    for session in opened:
        session.close()


@pytest.fixture
def served(open_pair) -> Iterator[Served]:
    with serving(open_pair()) as server:
        yield server


@pytest.fixture(scope="module")
def shared(tiny_chat_dir: Path, make_tiny_head) -> Iterator[Served]:
    """One server for a file's tests that change nothing of it."""
    files = PairFiles("mine", tiny_chat_dir, make_tiny_head(tiny_chat_dir))
    session = follow(open_session(files, CPU, WHOLE))
    with session, serving(session) as server:
        yield server
