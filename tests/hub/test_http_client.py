"""Proxies and certificates of the environment: they work, or are named in one line."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dspark import http_client, hub
from dspark.errors import DSparkError, NetworkSetupError
from dspark.http_client import is_direct, make_async_client, make_client
from dspark.hub.sources.hf_listing import open_session
from tests.hub.hub_server import Hub, point_to, serving

FAR = "https://hub.example/api"
UNUSABLE = {
    "socks://10.0.0.1:1080/": "socksio",
    "socks5h://10.0.0.1:1080": "socksio",
    "socks4://10.0.0.1:1080": "is not the address",
    "ftp://10.0.0.1:21": "is not the address",
    "http://proxy.example:port": "is not the address",
    "http://": "has no host",
    "http://käse\u2028.example": "is not the address",
}
ODD_EXCEPTIONS = (
    "localhost,127.0.0.1,[::1]",
    "localhost,fd07:b51a:cc66:f0::/64",
    "[fd07::]/64 10.0.0.0/8,*.corp.example",
    "http://x:y, [::1]:8080,ä.example,",
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxies but those of the test, and no SOCKS library, whatever is installed."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(http_client, "find_spec", lambda name: None)


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    """An HTTP proxy that answers itself, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine, asked as by a process that has just begun."""
    from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

    with serving({"owner/model": {"config.json": b"{}", "model.safetensors": b"0"}}) as server:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        point_to(server, monkeypatch, tmp_path / "cache")
        close_session()
        yield server
        close_session()


@pytest.mark.parametrize(("value", "reason"), UNUSABLE.items())
def test_a_proxy_that_cannot_be_used_is_named_where_it_is_needed(
    value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    with pytest.raises(NetworkSetupError, match=reason) as caught:
        make_client(FAR)
    assert "hub.example" in caught.value.message
    assert "ALL_PROXY" in caught.value.hint
    with pytest.raises(NetworkSetupError, match=reason):
        make_async_client(FAR)


@pytest.mark.parametrize("value", UNUSABLE)
@pytest.mark.parametrize("name", ["ALL_PROXY", "http_proxy", "HTTPS_PROXY"])
def test_and_passed_over_where_it_is_not(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, repository: Hub
) -> None:
    monkeypatch.setenv(name, value)
    assert hub.look_up("owner/model").kind == "a target without a head"
    assert os.environ[name] == value


@pytest.mark.parametrize("value", ODD_EXCEPTIONS)
def test_any_list_of_exceptions_lets_a_client_be_made(
    value: str, monkeypatch: pytest.MonkeyPatch, repository: Hub
) -> None:
    monkeypatch.setenv("NO_PROXY", value)
    monkeypatch.setenv("HTTPS_PROXY", "http://10.0.0.1:3128")
    assert hub.look_up("owner/model").kind == "a target without a head"
    make_client(FAR).close()
    assert os.environ["NO_PROXY"] == value
    assert "no_proxy" not in os.environ


@pytest.mark.parametrize(
    ("url", "exceptions", "direct"),
    [
        ("http://localhost:8000", "", True),
        ("http://127.0.0.1:8000", "", True),
        ("http://[::1]:8000", "", True),
        ("https://hub.example", "*", True),
        ("https://hub.example", "hub.example", True),
        ("https://HUB.Example.", ".EXAMPLE", True),
        ("https://a.hub.example", "hub.example", True),
        ("https://a.hub.example", "*.hub.example", True),
        ("https://myhub.example", "hub.example", False),
        ("https://hub.example", "a.hub.example", False),
        ("https://hub.example", "hub.example:443", True),
        ("https://hub.example:8443", "hub.example:443", False),
        ("http://10.1.2.3", "10.0.0.0/8", True),
        ("http://11.1.2.3", "10.0.0.0/8", False),
        ("http://10.1.2.3:80", "10.1.2.3:80", True),
        ("http://[fd07::5]:80", "[fd07::]/64", True),
        ("http://[fd07::5]:80", "[fd07::5]:80", True),
        ("http://[fd07::5]:81", "[fd07::5]:80", False),
        ("http://[fd08::5]", "fd07::/64", False),
        ("http://10.1.2.3", "::/0", False),
        ("https://hub.example", "one.example,, hub.example", True),
    ],
)
def test_which_addresses_need_no_proxy(url: str, exceptions: str, direct: bool) -> None:
    assert is_direct(urlsplit(url), exceptions.split(",")) is direct


def test_a_good_proxy_is_used_beside_a_bad_one_and_never_for_this_machine(
    proxy: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, repository: Hub
) -> None:
    address, asked = proxy
    monkeypatch.setenv("HTTP_PROXY", address.removeprefix("http://"))
    monkeypatch.setenv("HTTPS_PROXY", "socks://10.0.0.1:1080")
    with make_client("http://far.example/x") as client:
        assert client.get("http://far.example/x").status_code == 200
    assert asked == ["http://far.example/x"]
    assert hub.look_up("owner/model").kind == "a target without a head"
    assert len(asked) == 1


def test_a_range_of_addresses_holds_for_the_hubs_own_library(
    monkeypatch: pytest.MonkeyPatch, repository: Hub
) -> None:
    from huggingface_hub import get_session

    called = []

    def refuse(address: tuple[str, int], *_: object, **__: object) -> None:
        called.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("ALL_PROXY", "http://192.0.2.1:3128")
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://10.9.9.9:8080")
    open_session()
    for url in ("http://10.9.9.9:8080/x", "http://11.9.9.9/x"):
        with suppress(Exception):
            get_session().get(url)
    assert called == [("10.9.9.9", 8080), ("192.0.2.1", 3128)]


def test_a_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://me:secret@10.0.0.1")
    with pytest.raises(NetworkSetupError) as caught:
        make_client(FAR)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"])
def test_certificates_that_are_not_there_are_named(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = tmp_path / "gone" / "file"
    monkeypatch.setenv(name, str(missing))
    try:
        make_client(FAR).close()  # a folder that is not there holds no certificates; no error
    except NetworkSetupError as error:
        assert f"{name}={missing}" in error.hint
    else:
        assert name == "SSL_CERT_DIR"


def test_a_token_that_no_header_can_carry(monkeypatch: pytest.MonkeyPatch, repository: Hub) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_schlüssel")
    with pytest.raises(NetworkSetupError, match="not allowed in an HTTP header"):
        hub.look_up("owner/model")


@pytest.mark.parametrize(
    "url", ["http://[bad/simple", "http://host:port/simple", "http://ä\u2028/"]
)
def test_an_address_of_an_index_that_is_none(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", url)
    with pytest.raises(DSparkError, match="not found on a package index"):
        list(hub.fetch("demo"))
