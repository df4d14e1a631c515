"""The recipe that compares four algorithms: one size for all, and nothing trained twice."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from dspark.errors import InputError

RECIPE = Path(__file__).parents[2] / "recipes" / "compare_drafters.py"


@pytest.fixture(scope="module")
def recipe() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPE.parent)
        yield importlib.import_module("compare_drafters")


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
        steps = command[command.index("--steps") + 1]
        (tmp_path / f"mtp-0.001-{steps}").mkdir(exist_ok=True)
        if steps == "13":
            raise recipe.subprocess.CalledProcessError(130, command)

    monkeypatch.setattr(recipe.subprocess, "run", dspark)
    arguments, graft_options = parsed("--steps", "7")
    head = recipe.plan(arguments)[-1]
    recipe.train(head, 1e-3, 7, arguments, graft_options)
    recipe.train(head, 1e-3, 7, arguments, graft_options)
    assert len(trained) == 1
    assert json.loads((tmp_path / "mtp-0.001-7" / "trained.json").read_text())["command"][:4] == [
        *("graft", "--train", "--base", arguments.base)
    ]
    with pytest.raises(InputError, match="other options"):
        recipe.train(head, 1e-3, 7, arguments, ["--anchors", "9"])
    for _ in range(2):
        with pytest.raises(recipe.subprocess.CalledProcessError):
            recipe.train(head, 1e-3, 13, parsed("--steps", "13")[0], graft_options)
    assert len(trained) == 3


def test_shapes_of_the_paper(recipe, parsed):
    arguments, _ = parsed("--shapes", "paper")
    options = {each.algorithm: each.shape_options for each in recipe.plan(arguments)}
    for algorithm in ("dspark", "dflash", "dflash2", "domino"):
        assert options[algorithm][:4] == ("--block-size", "7", "--layers", "5")
    assert options["eagle3"] == ("--block-size", "7") and options["mtp"] == ()


def test_heads_of_equal_time_have_the_largest_shape_that_fits(recipe, parsed, monkeypatch):
    def seconds(algorithm, shape, arguments):
        if algorithm == "eagle3":
            return 0.3 * shape["block_size"]
        own = {"dspark": 0.3, "dflash": -0.1, "dflash2": 0.2, "domino": 0.9}.get(algorithm, 2.0)
        return own + 0.35 * shape.get("num_layers", 1)

    monkeypatch.setattr(recipe, "seconds_to_draft", seconds)
    arguments, _ = parsed("--shapes", "equal-time", "--layers", "2")
    found = {each.algorithm: each for each in recipe.plan(arguments)}
    layers = {a: dict(zip(each.shape_options[::2], each.shape_options[1::2], strict=True))
              for a, each in found.items()}  # fmt: skip
    assert layers["dspark"]["--layers"] == "2" and layers["dflash"]["--layers"] == "3"
    assert layers["dflash2"]["--layers"] == "2" and layers["domino"]["--layers"] == "1"
    assert layers["eagle3"]["--block-size"] == "3"
    assert found["mtp"].draft_seconds == 2.35
    monkeypatch.setattr(recipe, "seconds_to_draft", lambda *_: 1.0)
    assert recipe.plan(arguments) == [*found.values()]  # as it was measured first


def test_a_draft_of_an_untrained_head_is_timed(recipe, parsed, monkeypatch):
    monkeypatch.setattr("time_drafts.BLOCKS", 2)
    arguments, _ = parsed()
    assert recipe.seconds_to_draft("domino", {"block_size": 3, "markov_rank": 8}, arguments) > 0.0


def test_of_two_rates_the_better_head_is_compared(recipe, parsed, monkeypatch):
    figures = {"0.001": 1.9, "0.002": 2.1}

    def train(each, rate, steps, arguments, options):
        folder = recipe.head_folder(each.algorithm, rate, steps, arguments)
        folder.mkdir(exist_ok=True)
        (folder / "training").mkdir(exist_ok=True)
        lines = [
            {"kind": "held_out", "tau": 9.0},
            {"kind": "held_out", "tau": figures[f"{rate:g}"]},
        ]
        lines.append({"kind": "step", "tau": 9.0})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "training" / "metrics.jsonl").write_text(text)
        return folder

    monkeypatch.setattr(recipe, "train", train)
    arguments, options = parsed("--rates", "1e-3", "2e-3")
    head = recipe.plan(arguments)[0]
    assert recipe.best_of(head, arguments, options).name == "dspark-0.002-1500"
    arguments, options = parsed("--rates", "1e-3", "2e-3", "--trial-steps", "20")
    assert recipe.best_of(head, arguments, options).name == "dspark-0.002-1500"
    assert (arguments.out / "dspark-0.001-20").exists()


def test_a_trial_ends_once_its_last_step_is_validated(recipe, tmp_path):
    path = tmp_path / "training" / "metrics.jsonl"
    path.parent.mkdir()
    line = json.dumps({"kind": "held_out", "step": 5, "tau": 1.0})
    write = f"open({str(path)!r}, 'w').write({line!r} + chr(10))"
    judging = [sys.executable, "-c", f"import time; {write}; time.sleep(600)"]
    recipe.run_until_judged(judging, tmp_path, 5)
    assert recipe.held_out_tau(tmp_path) == 1.0
    with pytest.raises(recipe.subprocess.CalledProcessError):
        recipe.run_until_judged([sys.executable, "-c", "exit(3)"], tmp_path, 6)
