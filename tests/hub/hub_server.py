"""Enough of the Hugging Face hub on 127.0.0.1: listing, HEAD and ranged GET of files, bad lines."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "c" * 40
LARGE = (".safetensors",)


@dataclass
class Hub:
    """Repositories by id, as path -> bytes; what was asked for, and what goes wrong."""

    repos: dict[str, dict[str, bytes]]
    url: str = ""
    breaks: list[int] = field(default_factory=list)  # bytes of a file to send before hanging up
    hold: threading.Event | None = None  # half of a large file, then nothing until it is set
    lies: dict[str, bytes] = field(default_factory=dict)  # sent instead of what is listed
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range
    tokens: set[str | None] = field(default_factory=set)

    def files_sent(self) -> list[str]:
        return [path for method, path, _ in self.asked if method == "GET"]


def blob_id(path: str, content: bytes) -> str:
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def point_to(hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """The hub's library asks this one, and keeps what it gets in `cache`."""
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", "hf_test")


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
                self._list(match[1])
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                self._send_file(match[1], match[2])
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def _list(self, repo_id: str) -> None:
            hub.tokens.add(self.headers["Authorization"])
            if repo_id not in hub.repos:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            siblings = [_sibling(*item) for item in hub.repos[repo_id].items()]
            body = json.dumps({"id": repo_id, "sha": COMMIT, "siblings": siblings}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _send_file(self, repo_id: str, path: str) -> None:
            hub.tokens.add(self.headers["Authorization"])
            content = hub.repos[repo_id][path]
            hub.asked.append((self.command, path, self.headers["Range"]))
            match = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
            start = int(match[1]) if match else 0
            self.send_response(206 if start else 200)
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", f'"{blob_id(path, content)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "HEAD":
                return
            body = hub.lies.get(path, content)[start:]
            if hub.hold and path.endswith(LARGE):
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                hub.hold.wait(20)
                return
            if hub.breaks and path.endswith(LARGE):
                body = body[: hub.breaks.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"rfilename": path, "size": len(content)}
    if path.endswith(LARGE):
        found["lfs"] = {"sha256": blob_id(path, content), "size": len(content), "pointerSize": 1}
        return found | {"blobId": "0" * 40}
    return found | {"blobId": blob_id(path, content)}


@contextmanager
def serving(repos: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    hub = Hub(repos)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
