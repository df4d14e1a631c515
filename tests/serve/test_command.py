"""`dspark serve` as a process: its address, its end, and what it refuses before it loads."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from dspark_cli.main import run


@contextmanager
def started(target, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    command = [sys.executable, "-m", "dspark_cli", "serve", "--target", str(target)]
    command += ["--draft", "none", "--device", "cpu", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = iter(process.stderr.readline, "")
        url = next(found[0] for line in lines if (found := re.search(r"http://[\w.:]+", line)))
        yield process, url
    finally:
        process.kill()
        process.communicate()


def asked(url: str, target, **options) -> httpx.Response:
    body = {"model": target.name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    return httpx.post(
        f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=60, **options
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_it_answers_until_it_is_interrupted(tiny_chat_dir):
    with started(tiny_chat_dir, "--api-key", "secret") as (process, url):
        assert asked(url, tiny_chat_dir).status_code == 401
        answer = asked(url, tiny_chat_dir, headers={"Authorization": "Bearer secret"})
        assert answer.json()["usage"]["completion_tokens"] == 4
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) in (0, 130)
        assert "Traceback" not in process.stderr.read()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_in_an_answer_it_starts_again_where_it_was(tiny_chat_dir, tmp_path, monkeypatch):
    """The port is free, no file of the store is half written, and the answer is the same."""
    home = tmp_path / "store"
    monkeypatch.setenv("DSPARK_HOME", str(home))
    with started(tiny_chat_dir, "--draft", "lookup") as (process, url):
        port = url.rpartition(":")[2]
        expected = asked(url, tiny_chat_dir).json()["choices"]
        whole = files_of(home)
        assert any(name.startswith("sps") for name in whole), "what passes cost"
        body = {"model": tiny_chat_dir.name, "prompt": "Hi", "max_tokens": 10**6, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, trust_env=False) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.kill()
            process.wait(timeout=20)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
    assert files_of(home) == whole
    with started(tiny_chat_dir, "--draft", "lookup", "--port", port) as (_, url):
        assert url.endswith(f":{port}")
        assert asked(url, tiny_chat_dir).json()["choices"] == expected
    again = files_of(home)
    assert again.keys() == whole.keys()
    for name in again.keys() - {each for each in whole if each.endswith(".parking")}:
        assert again[name] == whole[name]  # measured once; only what parking learned goes on


def files_of(folder) -> dict[str, bytes]:
    """All but locks, which the system frees with their holder."""
    found = {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_port_in_use_is_told_before_anything_is_loaded(tiny_chat_dir, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert run(["serve", "--target", str(tiny_chat_dir), "--port", port]) == 1
    told = capsys.readouterr().err
    assert f"port {port}" in told and "--port" in told


def test_a_model_without_a_tokenizer_is_refused(tiny_llama_dir, capsys):
    assert run(["serve", "--target", str(tiny_llama_dir), "--port", "0"]) == 2
    assert "tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gpus", "2"],
        ["--print"],
        ["--json"],
        ["qwen3-4b", "--engine", "vllm", "--port", "9000"],
        ["qwen3-4b", "--engine", "sglang", "--api-key", "secret"],
    ],
    ids=" ".join,
)
def test_options_of_the_other_engine_are_refused(arguments, capsys):
    assert run(["serve", *arguments]) == 2
    assert arguments[-2 if arguments[-1][0] != "-" else -1] in capsys.readouterr().err
