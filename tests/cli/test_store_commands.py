"""pull, list, show, rm and doctor: the answer on stdout, a complaint as one line on stderr."""

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from dspark import hub
from dspark.checkpoints.gguf_codes import CONVERSION, STATED
from dspark.errors import DownloadError
from dspark.events import FetchProgress
from dspark.hub.catalog import find, pairs
from dspark.hub.memory_needed import PROGRAM_BYTES, TRANSFORMERS_BYTES
from dspark_kernels.cpu.processor import variants
from tests.hub.hub_server import point_to, serving


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """An empty store that knows one pair, whose head is not shipped."""
    demo = replace(find.CATALOG.pairs["demo"], draft=None)
    monkeypatch.setattr(find, "PAIRS", {"demo": demo})
    monkeypatch.setenv("DSPARK_HOME", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def put_demo(home, tiny_llama_dir, monkeypatch):
    """Stands in for the network: `hub.fetch` puts a tiny model where the target belongs."""

    def put() -> Path:
        target = home / "pairs" / "demo" / "target"
        target.mkdir(parents=True)
        (target / "config.json").write_bytes((tiny_llama_dir / "config.json").read_bytes())
        weights = load_file(tiny_llama_dir / "model.safetensors")
        save_file(weights, target / "model.safetensors", metadata={STATED: str(CONVERSION)})
        return target

    def fetch(name: str, **options: bool) -> Iterator[FetchProgress]:
        yield FetchProgress("a file", 1, 2)
        put()
        yield FetchProgress("a file", 2, 2)

    monkeypatch.setattr(hub, "fetch", fetch)
    return put


@pytest.fixture
def shipped_head(tmp_path, tiny_llama_dir, make_tiny_head, monkeypatch) -> Path:
    head = make_tiny_head(tiny_llama_dir)
    monkeypatch.setattr(pairs.resources, "files", lambda package: head.parent)
    pair = replace(find.CATALOG.pairs["demo"], draft=pairs.AssetFolder(head.name))
    find.PAIRS["demo"] = pair
    return head


def test_pull_fetches_once_and_answers_with_the_folder(dspark, home, put_demo) -> None:
    first = dspark("pull")
    target = home / "pairs" / "demo" / "target"
    assert (first.code, first.out) == (0, f"{target}\n")
    assert first.err == "fetching demo (92.9 MB)\n"
    second = dspark("pull", "demo", "--json")
    answer = json.loads(second.out)
    size = sum(file.stat().st_size for file in target.iterdir())
    assert answer == {
        "name": "demo",
        "target": str(target),
        "draft": None,
        "stored_bytes": size,
        "was_present": True,
    }
    assert second.err == ""


def test_pull_brings_what_an_earlier_version_stored_up_to_date(
    dspark, put_demo, monkeypatch
) -> None:
    weights = put_demo() / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    plan = json.loads(dspark("pull", "--dry-run", "--json").out)
    assert plan["download_bytes"] == find.CATALOG.pairs["demo"].target.num_bytes
    fetched = []
    monkeypatch.setattr(hub, "fetch", lambda name, **options: fetched.append(name) or [])
    told = dspark("pull").err
    assert told == (
        "demo was stored by an earlier version of dspark: fetching it again (92.9 MB)\n"
    )
    assert fetched == ["demo"]


def test_doctor_leaves_out_what_it_has_nothing_to_tell_of(dspark) -> None:
    told = dspark("doctor").out
    assert "versions\n" in told and "measured speeds" not in told


def test_a_failed_pull_is_one_line(dspark, monkeypatch) -> None:
    def fetch(name: str, **options: bool) -> Iterator[FetchProgress]:
        raise DownloadError("it broke", "Try again.")
        yield

    monkeypatch.setattr(hub, "fetch", fetch)
    outcome = dspark("pull")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.splitlines()[1:] == ["dspark: it broke. Try again."]


@pytest.mark.parametrize("command", ["pull", "show", "rm"])
def test_an_unknown_pair_brings_the_nearest(dspark, command) -> None:
    outcome = dspark(command, "demoo")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "dspark: no pair is called 'demoo'. Did you mean demo?\n"


def test_list_tells_what_is_on_disk(dspark, home, put_demo) -> None:
    def answer() -> dict[str, object]:
        (pair,) = json.loads(dspark("list", "--json").out)["pairs"]
        return pair

    assert (answer()["is_complete"], answer()["stored_bytes"]) == (False, 0)
    assert dspark("list").out.splitlines()[1].split()[:2] == ["demo", "no"]
    (home / "downloads").mkdir(parents=True)
    part = home / "downloads" / f"{find.CATALOG.pairs['demo'].target.filename}.part"
    part.write_bytes(bytes(2000))
    assert (answer()["is_complete"], answer()["stored_bytes"]) == (False, 2000)
    assert "2.0 kB, unfinished" in dspark("list").out
    part.unlink()
    put_demo()
    assert answer()["is_complete"] is True
    assert answer()["stored_bytes"] > 10_000


def test_show_before_and_after_the_pull(dspark, home, put_demo) -> None:
    assert "dspark pull demo" in dspark("show").out
    assert json.loads(dspark("show", "--json").out)["target"] is None
    target = put_demo()
    facts = json.loads(dspark("show", "demo", "--json").out)
    assert facts["target"]["path"] == str(target)
    assert facts["target"]["bytes"] == hub.stored_bytes(hub.find_pair("demo"))
    assert facts["licence"] == "Apache-2.0"
    assert set(facts["origins"]) >= {"licence", "num_parameters"}
    assert facts["draft"] is None


def test_show_describes_the_head(dspark, shipped_head) -> None:
    from safetensors.numpy import load_file

    head = json.loads(dspark("show", "--json").out)["draft"]
    assert head["path"] == str(shipped_head)
    assert (head["block_size"], head["target_layer_ids"]) == (4, [0, 1])
    assert (head["markov_type"], head["markov_rank"]) == ("vanilla", 8)
    assert head["has_confidence"] is True
    assert head["calibration"] == "none"
    tensors = load_file(shipped_head / "model.safetensors")
    assert head["num_parameters"] == sum(tensor.size for tensor in tensors.values())
    text = dspark("show").out
    assert "layers 0, 1" in text
    assert "vanilla, rank 8" in text


def test_show_tells_what_was_measured(dspark, shipped_head) -> None:
    assert json.loads(dspark("show", "--json").out)["draft"]["verdict"] is None
    assert "verdict" not in dspark("show").out
    measured = shipped_head / "measured.json"
    measured.write_text(json.dumps({"verdict": "Worth using: 1.30 ×."}), "utf-8")
    assert json.loads(dspark("show", "--json").out)["draft"]["verdict"] == "Worth using: 1.30 ×."
    assert "Worth using: 1.30 ×." in dspark("show").out
    measured.write_text("torn {", "utf-8")
    assert json.loads(dspark("show", "--json").out)["draft"]["verdict"] is None


def test_show_takes_a_folder(dspark, tiny_llama_dir) -> None:
    facts = json.loads(dspark("show", str(tiny_llama_dir), "--json").out)
    assert facts["target"]["path"] == str(tiny_llama_dir)
    assert "licence" not in facts


def test_rm_asks_and_removes_only_on_yes(dspark, home, put_demo, monkeypatch) -> None:
    put_demo()
    refused = dspark("rm", "demo")
    assert refused.code == 2
    assert "--yes" in refused.err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", _answer(False))
    kept = dspark("rm", "demo")
    assert (kept.code, kept.out, kept.err) == (0, "demo is kept\n", "")
    assert json.loads(dspark("rm", "demo", "--json").out) == {
        "name": "demo",
        "freed_bytes": 0,
        "kept": True,
    }
    assert hub.locate("demo") is not None
    monkeypatch.setattr("typer.confirm", _answer(True))
    assert dspark("rm", "demo").out.endswith("freed\n")
    assert hub.locate("demo") is None


def _answer(is_yes: bool):
    def confirm(text: str, *, err: bool) -> bool:
        assert err
        return is_yes

    return confirm


def test_rm_yes_frees_what_was_there(dspark, put_demo, shipped_head) -> None:
    put_demo()
    size = hub.stored_bytes(hub.find_pair("demo"))
    removed = dspark("rm", "demo", "--yes", "--json")
    assert json.loads(removed.out) == {
        "name": "demo",
        "freed_bytes": size,
        "kept": False,
    }
    assert (shipped_head / "config.json").is_file()
    again = dspark("rm", "demo")
    assert (again.code, again.out) == (0, "demo is not on disk\n")


def test_doctor_reports_what_is_here(dspark, home, put_demo) -> None:
    import torch

    report = json.loads(dspark("doctor", "--json").out)
    assert report["versions"]["torch"] == torch.__version__
    assert report["store"]["path"] == str(home)
    assert report["runtime"]["dtype"] in ("float32", "bfloat16")
    assert report["runtime"]["reason"]
    held = "as stored" if variants() and report["runtime"]["dtype"] == "float32" else "float"
    assert held in report["runtime"]["demo_weights"]
    text = dspark("doctor").out
    assert "known once on disk" in text and "dspark chat" in text.splitlines()[-1]
    pair = report["pairs"]["demo"]
    assert pair["in_store"] is False
    is_unpacked = report["runtime"]["dtype"] != "float32" or not variants()
    weights = 134_515_008 * 2 if is_unpacked else 98_362_432  # of the file, as it is
    assert weights + PROGRAM_BYTES < pair["memory_bytes"] < weights + 3 * PROGRAM_BYTES
    assert pair["disk_still_needed_bytes"] > 290_000_000
    how = report["runtime"]["gguf_on_the_cpu"]
    assert ("as stored" in how and next(iter(variants())) in how) if variants() else "torch" in how
    put_demo()
    pair = json.loads(dspark("doctor", "--json").out)["pairs"]["demo"]
    assert (pair["in_store"], pair["disk_still_needed_bytes"]) == (True, 0)
    program = PROGRAM_BYTES + TRANSFORMERS_BYTES  # the stand-in is not in codes
    assert program < pair["memory_bytes"] < program + 50_000_000
    assert pair["tokens_beside_weights"] > 10_000


@pytest.mark.parametrize("is_here", [False, True])
def test_one_figure_of_memory_everywhere(dspark, put_demo, is_here) -> None:
    if is_here:
        put_demo()
    listed = json.loads(dspark("list", "--json").out)["pairs"]
    planned = json.loads(dspark("pull", "demo", "--dry-run", "--json").out)
    figures = {
        next(each["memory_bytes"] for each in listed if each["name"] == "demo"),
        json.loads(dspark("doctor", "--json").out)["pairs"]["demo"]["memory_bytes"],
        json.loads(dspark("show", "demo", "--json").out)["memory_bytes"],
        planned["memory_needed"],
    }
    assert len(figures) == 1


@pytest.mark.parametrize("module", ["torch", "psutil", "huggingface_hub"])
def test_doctor_survives_what_is_missing(dspark, module, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    outcome = dspark("doctor", "--json")
    report = json.loads(outcome.out)
    assert (outcome.code, outcome.err) == (0, "")
    section = {"torch": "devices", "psutil": "machine", "huggingface_hub": "hugging_face"}[module]
    if module == "psutil":  # the system tells its memory, too
        assert 0 < report[section]["free_memory_bytes"] <= report[section]["memory_bytes"]
    else:
        assert module in report[section]["problem"]
    assert report["versions"]["python"] == platform.python_version()
    assert report["store"]["free_bytes"] > 0
    assert dspark("doctor").code == 0


def test_doctor_says_that_a_store_is_damaged(dspark, put_demo) -> None:
    weights = put_demo() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    report = json.loads(dspark("doctor", "--json").out)
    assert "truncated" in report["pairs"]["problem"]


def test_a_pair_of_ones_own_is_a_name_like_others(dspark, tiny_llama_dir, make_tiny_head) -> None:
    head = make_tiny_head(tiny_llama_dir)
    hub.register("mine", str(tiny_llama_dir), str(head))
    assert "mine" in dspark("list").out
    facts = json.loads(dspark("show", "mine", "--json").out)
    assert (facts["target"]["path"], facts["draft"]["path"]) == (str(tiny_llama_dir), str(head))
    assert dspark("pull", "mine").out == f"{tiny_llama_dir}\n"
    assert "asks for confirmation" in dspark("rm", "mine").err
    assert dspark("rm", "mine", "--yes").out.startswith("mine is forgotten")
    assert dspark("show", "mine").code == 2
    assert (head / "config.json").is_file()


def test_a_dry_run_tells_and_fetches_nothing(dspark, home) -> None:
    plan = json.loads(dspark("pull", "demo", "--dry-run", "--json").out)
    assert plan["download_bytes"] == find.CATALOG.pairs["demo"].target.num_bytes
    assert plan["disk_needed"] > plan["download_bytes"]
    assert (plan["fits_disk"], plan["fits_memory"]) == (True, True)
    text = dspark("pull", "demo", "--dry-run").out
    assert find.CATALOG.pairs["demo"].target.filename in text
    assert ": fits" in text
    assert not home.exists()
    assert "demo has no head to fetch" in dspark("pull", "demo", "--head").err


def test_what_no_memory_here_holds_is_refused(dspark, monkeypatch) -> None:
    from dspark.hub import memory_fit

    huge = replace(find.CATALOG.pairs["demo"], name="huge", num_parameters=10**13)
    monkeypatch.setitem(find.PAIRS, "huge", huge)
    monkeypatch.setattr(memory_fit, "rooms", lambda: [memory_fit.Room("cpu", 10**9, 4)])
    for command in (["pull", "huge"], ["chat", "huge"], ["generate", "Hi", "--pair", "huge"]):
        outcome = dspark(*command)
        assert (outcome.code, outcome.out) == (1, "")
        assert "huge needs 4000" in outcome.err and "(cpu, float32)" in outcome.err


def test_a_repository_without_a_name_here_is_fetched_by_its_id(
    dspark, tiny_llama_dir, tmp_path, monkeypatch
) -> None:
    names = ("config.json", "model.safetensors")
    files = {name: (tiny_llama_dir / name).read_bytes() for name in names}
    with serving({"owner/model": files}) as server:
        point_to(server, monkeypatch, tmp_path / "cache")
        plan = json.loads(dspark("pull", "owner/model", "--dry-run", "--json").out)
        assert plan["download_bytes"] == sum(map(len, files.values()))
        fetched = dspark("pull", "owner/model")
        assert "owner/model is a target without a head" in fetched.err
        assert hub.resolve_target("owner/model") == Path(fetched.out.rstrip("\n"))
        assert "without a head" in dspark("pull", "owner/model", "--head-only").err
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert json.loads(dspark("pull", "owner/model", "--json").out)["was_present"]
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        assert dspark("pull", "owner/missing").code == 2
