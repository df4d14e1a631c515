"""The commands that other engines are given, and what they cannot run, in one line."""

import json
import shlex
import sys

import pytest

from dspark.serve import handover
from dspark_cli.main import run


def printed(capsys, *arguments: str) -> list[str]:
    assert run(["serve", *arguments, "--print"]) == 0
    return shlex.split(capsys.readouterr().out)


def test_vllm_gets_a_head_of_its_own(capsys):
    command = printed(capsys, "qwen3-4b", "--engine", "vllm")
    assert command[:3] == ["vllm", "serve", "Qwen/Qwen3-4B"]
    assert command[3] == "--speculative-config"
    assert json.loads(command[4]) == {
        "method": "dspark",
        "model": "deepseek-ai/dspark_qwen3_4b_block7",
        "num_speculative_tokens": 7,
    }


def test_vllm_gets_deepseek_v4_by_its_recipe(capsys):
    command = printed(capsys, "deepseek-v4-flash", "--engine", "vllm", "--gpus", "4")
    assert command[2] == "deepseek-ai/DeepSeek-V4-Flash-0731"
    assert command[command.index("--tensor-parallel-size") + 1] == "4"
    assert command[command.index("--tokenizer-mode") + 1] == "deepseek_v4"
    assert "--trust-remote-code" not in command
    settings = json.loads(command[-1])
    assert "model" not in settings and settings["num_speculative_tokens"] == 5  # its block


def test_sglang(capsys):
    command = printed(capsys, "qwen3-8b", "--engine", "sglang")
    assert command[:5] == ["python", "-m", "sglang.launch_server", "--model-path", "Qwen/Qwen3-8B"]
    assert command[-4:] == [
        "--speculative-draft-model-path",
        "deepseek-ai/dspark_qwen3_8b_block7",
        "--speculative-dspark-block-size",
        "7",
    ]


@pytest.mark.parametrize(
    ("pair", "engine", "words"),
    [
        ("gemma4-12b", "sglang", "gemma4_unified"),
        ("qwen3-4b:eagle3", "vllm", "not established"),
        ("demo", "vllm", "ships with dspark"),
        ("qwen3-8b:speculators", "sglang", "speculators"),
    ],
)
def test_what_an_engine_cannot_run_is_one_line(capsys, pair, engine, words):
    assert run(["serve", pair, "--engine", engine, "--print"]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


@pytest.fixture
def installed(monkeypatch):
    started = []
    monkeypatch.setattr("os.execv", lambda program, arguments: started.append(arguments))

    def pretend(version: str | None) -> list[list[str]]:
        def found(name: str) -> str:
            if version is None:
                raise handover.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(handover, "version", found)
        return started

    return pretend


@pytest.mark.parametrize(
    ("version", "words"), [(None, "not installed"), ("0.5.9", "SGLang 0.5.9 is too old")]
)
def test_an_engine_that_is_missing_or_too_old_is_not_started(capsys, installed, version, words):
    started = installed(version)
    assert run(["serve", "qwen3-4b", "--engine", "sglang"]) == 1
    err = capsys.readouterr().err
    assert words in err and "0.5.16" in err and err.count("\n") == 1 and not started


def test_the_installed_engine_takes_over(capsys, installed):
    started = installed("0.5.23")
    assert run(["serve", "qwen3-4b", "--engine", "sglang"]) == 0
    assert started[0][:3] == [sys.executable, "-m", "sglang.launch_server"]
    assert "dspark chat --server http://localhost:30000" in capsys.readouterr().err
