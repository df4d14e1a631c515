"""The README's commands are the ones that CI runs, and every command in the documents exists."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.readme_figures import with_figures
from dspark_cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
GROUP: Any = typer.main.get_command(app)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
BLOCKS = [text for language, text in FENCED.findall(README) if not language]
PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "log.md"]
DOCUMENTS = "\n".join([README, *(path.read_text("utf-8") for path in PAGES)])
DOCUMENT_BLOCKS = [text for language, text in FENCED.findall(DOCUMENTS) if not language]
QUICK_START = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
LIBRARY = (ROOT / "docs" / "library.md").read_text("utf-8")
PYTHON = [
    text
    for page in (README, LIBRARY)
    for language, text in FENCED.findall(page)
    if language == "python"
]
COMMANDS = sorted(
    {
        re.split("[#<>]", line)[0].strip()
        for block in DOCUMENT_BLOCKS
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
def test_every_command_in_it_parses(command):
    _, name, *rest = shlex.split(command)
    parent = GROUP.make_context("dspark", [name, *rest])
    found = GROUP.get_command(parent, name)
    assert found is not None
    with found.make_context(name, rest, parent=parent) as context:
        assert context.params


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text("utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_options_named_in_the_text_exist():
    parent = GROUP.make_context("dspark", [])
    commands = [GROUP, *(GROUP.get_command(parent, name) for name in GROUP.list_commands(parent))]
    known = {name for each in commands for param in each.get_params(parent) for name in param.opts}
    named = set(re.findall(r"`(?:dspark )?(--?[a-z][a-z-]*)", README + QUICK_START))
    assert {"--system", "-h"} <= named <= known


def test_it_names_no_host_but_public_ones():
    hosts = set(re.findall(r"https?://([^/\s`)]+)", README))
    assert hosts <= {
        *("download.pytorch.org", "huggingface.co", "github.com", "arxiv.org", "localhost:8000")
    }


def test_its_figures_are_those_of_the_results():
    assert with_figures(README) == README, "run make readme"


def test_a_changed_figure_is_noticed():
    changed = re.sub(r"\d+\.\d \(|\d\.\d\d × on", "9.99 × on", README)
    assert changed.count("9.99 × on") > 3
    assert with_figures(changed) == README


@pytest.mark.parametrize("code", PYTHON)
def test_python_in_the_documents_runs(
    code, tiny_chat_dir, make_tiny_head, monkeypatch, tmp_path, capsys
):
    """On a tiny pair called demo."""
    from dspark import hub
    from dspark.hub.catalog import find

    monkeypatch.setenv("DSPARK_HOME", str(tmp_path))
    monkeypatch.setattr(find, "PAIRS", {})
    hub.register("demo", str(tiny_chat_dir), str(make_tiny_head(tiny_chat_dir)))
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.demo
def test_the_readmes_python_runs_on_the_demo_pair(capsys):
    exec(compile(PYTHON[0], "README.md", "exec"), {})
    assert len(capsys.readouterr().out) > 20
