"""The recipe that compares four algorithms: one size for all, and nothing trained twice."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dspark.errors import InputError

RECIPE = Path(__file__).parents[2] / "recipes" / "compare_drafters.py"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_drafters", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parsed(recipe, monkeypatch, tiny_chat_dir, tmp_path):
    def parse(*options: str):
        own = ["--base", str(tiny_chat_dir), "--answers", "a.jsonl", "--prompts", "p.jsonl"]
        monkeypatch.setattr(sys, "argv", ["recipe", *own, "--out", str(tmp_path), *options])
        return recipe.parse()

    return parse


def test_all_heads_are_of_one_size(recipe, parsed):
    arguments, graft_options = parsed("--block-size", "3", "--layers", "2", "--", "--lr", "1e-3")
    assert graft_options == ["--lr", "1e-3"]
    candidates = recipe.plan(arguments)
    assert [each.algorithm for each in candidates] == [
        "dspark",
        "dflash",
        "dflash2",
        "domino",
        "eagle3",
        "mtp",
    ]
    sizes = [each.parameters for each in candidates]
    assert max(sizes) / min(sizes) < 1.02
    options = {each.algorithm: each.shape_options for each in candidates}
    assert options["dspark"] == ("--block-size", "3", "--layers", "2", "--markov-rank", "64")
    assert options["dflash"][:5] == ("--block-size", "3", "--layers", "2", "--intermediate-size")
    assert options["mtp"][0] == "--intermediate-size"


def test_heads_of_unlike_size_are_refused(recipe):
    recipe.check_budget({"dspark": 100, "mtp": 102})
    with pytest.raises(InputError, match="not of one size"):
        recipe.check_budget({"dspark": 100, "mtp": 103})


def test_a_head_that_is_done_is_not_trained_again(recipe, parsed, monkeypatch, tmp_path):
    trained: list[list[str]] = []

    def dspark(command: list[str], check: bool) -> None:
        trained.append(command)
        (tmp_path / "mtp").mkdir(exist_ok=True)
        if "13" in command:
            raise recipe.subprocess.CalledProcessError(130, command)

    monkeypatch.setattr(recipe.subprocess, "run", dspark)
    arguments, graft_options = parsed("--steps", "7")
    head = recipe.plan(arguments)[-1]
    recipe.train(head, arguments, graft_options)
    recipe.train(head, arguments, graft_options)
    assert len(trained) == 1
    assert json.loads((tmp_path / "mtp" / "trained.json").read_text())["command"][:4] == [
        *("graft", "--train", "--base", arguments.base)
    ]
    interrupted, _ = parsed("--steps", "13")
    for _ in range(2):
        with pytest.raises(recipe.subprocess.CalledProcessError):
            recipe.train(head, interrupted, graft_options)
    assert len(trained) == 3
