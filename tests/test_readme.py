"""The README's commands are the ones that CI runs, and every command in it exists."""

import re
import shlex
from pathlib import Path

import pytest

from dspark_cli.main import run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = sorted(
    {
        line.partition("#")[0].partition("<")[0].strip()
        for block in BLOCKS
        for line in block.splitlines()
        if line.startswith("dspark ")
    }
)


def test_it_opens_with_two_commands():
    chat, tests, *_ = BLOCKS
    assert len(chat.splitlines()) == len(tests.splitlines()) == 1
    assert chat.strip().endswith("&& .venv/bin/dspark chat")
    assert tests.strip().endswith("&& .venv/bin/python -m pytest")


def test_ci_runs_the_readmes_test_command_as_it_stands():
    assert f"\nrun '{BLOCKS[1].strip()}'\n" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_the_workflow_runs_what_ci_runs():
    workflow = (ROOT / ".github" / "workflows" / "check.yml").read_text("utf-8")
    assert "- run: bash .ci/run\n" in workflow


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_it_exists_with_its_options(command, capsys):
    _, name, *rest = shlex.split(command)
    assert run([name, "--help"]) == 0
    shown = capsys.readouterr().out
    for word in rest:
        if word.startswith("--"):
            assert word in shown


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)]+)\)", README))
def test_every_link_leads_somewhere(target):
    assert (ROOT / target).exists()


def test_the_options_named_in_the_text_exist(capsys):
    assert run(["generate", "--help"]) == 0 and run(["--help"]) == 0
    shown = capsys.readouterr().out
    for option in re.findall(r"`(?:dspark )?(--[a-z-]+)", README):
        assert option in shown
