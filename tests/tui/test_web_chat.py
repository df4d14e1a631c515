"""`dspark chat --web`: who gets the screen, and what runs in a tab."""

import asyncio
import builtins
import io
import json
import shlex
import socket
import sys

import pytest

from dspark.config import WebConfig
from dspark.errors import InputError
from dspark_cli.commands.chat import has_screen
from dspark_cli.main import run
from dspark_cli.web_chat import DRIVER_VARIABLE, make_server

aiohttp = pytest.importorskip("aiohttp")
pytest.importorskip("textual_serve")

APP = """
import sys
sys.path.insert(0, {root!r})
from dspark.chat.backend import ChatSettings
from dspark_tui.app import run_chat
from tests.tui.conftest import ScriptedBackend, Script
run_chat(ScriptedBackend([Script("Hello from the script")], loading=()), ChatSettings())
"""
SERVER = """
from dspark.config import WebConfig
from dspark_cli.web_chat import make_server
server = make_server([], WebConfig(port={port}))
server.command = {command!r}
server.serve()
"""


@pytest.fixture
def served(monkeypatch):
    """What was served: the words of the tab's chat, and where."""
    calls = []
    monkeypatch.setattr("dspark_cli.commands.chat.serve_chat", lambda *given: calls.append(given))
    return calls


def test_a_tab_gets_the_rest_of_the_command_line(served):
    line = [
        "chat",
        "demo",
        "Hi there",
        "--web",
        "--system",
        "Be brief.",
        "--private",
        "--seed",
        "3",
    ]
    assert run(line) == 0
    ((words, web),) = served
    assert web == WebConfig(host="127.0.0.1", port=8001)
    assert words[-3:] == ["--", "demo", "Hi there"]
    assert {*words[:-3]} == {"--system", "Be brief.", "--private", "--seed", "3"}


def test_the_port_is_chosen(served):
    assert run(["chat", "--web", "--port", "9123"]) == 0
    assert served == [([], WebConfig(port=9123))]


@pytest.mark.parametrize("line", [["--port", "9123"], ["--web", "--plain"]])
def test_options_that_do_not_go_together_are_refused(served, capsys, line):
    assert run(["chat", *line]) == 2
    assert served == [] and "--web" in capsys.readouterr().err


def test_without_textual_serve_the_command_that_installs_it_is_named(monkeypatch, capsys):
    real = builtins.__import__

    def missing(name, *rest):
        if name.startswith("textual_serve"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match="textual-serve") as refused:
        make_server([], WebConfig())
    assert "pip install" in refused.value.hint and "[web]" in refused.value.hint


def test_a_port_in_use_is_one_line(capsys):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        assert run(["chat", "--web", "--port", str(holder.getsockname()[1])]) == 1
    error = capsys.readouterr().err
    assert "cannot be used" in error and "--port" in error


def test_a_tab_has_a_screen_without_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert not has_screen()
    monkeypatch.setenv(DRIVER_VARIABLE, "textual.drivers.web_driver:WebDriver")
    assert has_screen()


async def test_a_chat_is_driven_through_its_socket(request):
    """As the page does it; other pages, and names that merely point here, are refused."""
    from aiohttp import ClientSession

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = shlex.join([sys.executable, "-c", APP.format(root=str(request.config.rootpath))])
    program = SERVER.format(port=port, command=command)
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    here = f"http://127.0.0.1:{port}"
    try:
        async with ClientSession() as client:
            assert await page_of(client, here) == 200
            for headers in (
                {},
                {"Origin": "http://evil.example"},
                {"Origin": here, "Host": f"evil.example:{port}"},
            ):
                answer = await client.get(f"{here}/ws", headers=headers)
                assert answer.status == 403
            address = f"ws://127.0.0.1:{port}/ws?width=100&height=30"
            async with client.ws_connect(address, origin=here) as page:
                await until(page, b"demo is ready")
                await page.send_str(json.dumps(["stdin", "Hi\r"]))
                await until(page, b"Hello from the script")
                await page.send_str(json.dumps(["stdin", "\x11"]))
    finally:
        server.terminate()
        await server.wait()


async def page_of(client, address: str) -> int:
    async with asyncio.timeout(30):
        while True:
            try:
                return (await client.get(address)).status
            except OSError:  # not listening yet
                await asyncio.sleep(0.05)


async def until(page, text: bytes) -> None:
    said = b""
    async with asyncio.timeout(30):
        async for message in page:
            said += message.data if isinstance(message.data, bytes) else b""
            if text in said:
                return
    raise AssertionError(said[-2000:])
