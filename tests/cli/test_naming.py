"""One way to name a model in all commands: a pair, a folder, a GGUF file or a Hugging Face id."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
from huggingface_hub import constants

from dspark import hub
from dspark.hub.catalog import find, pairs
from dspark.hub.catalog.pairs import HubRepo
from dspark_cli.options import complete_pair
from tests.hub.hub_server import Hub, point_to, serving

SETTINGS = ("--max-tokens", "4", "--device", "cpu")
DRAFTING = ("--schedule", "full")  # also where this machine, busy, would find that it does not pay


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> None:
    """An empty store that knows one pair, whose files are not here."""
    monkeypatch.setattr(find, "PAIRS", {"demo": replace(find.CATALOG.pairs["demo"], draft=None)})
    monkeypatch.setenv("DSPARK_HOME", str(tmp_path / "store"))


@pytest.fixture
def head(tiny_chat_dir, make_tiny_head):
    return make_tiny_head(tiny_chat_dir)


@pytest.fixture
def server(tiny_chat_dir, head, tmp_path, monkeypatch) -> Iterator[Hub]:
    repos = {
        "owner/model": {each.name: each.read_bytes() for each in tiny_chat_dir.iterdir()},
        "owner/head": {each.name: each.read_bytes() for each in head.iterdir()},
    }
    with serving(repos) as found:
        point_to(found, monkeypatch, tmp_path / "cache")
        yield found


def answer(outcome) -> dict:
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


@pytest.mark.parametrize("spelling", ["--pair", "-p"])
def test_a_folder_runs_without_drafts_and_says_so(dspark, tiny_chat_dir, spelling):
    outcome = dspark("generate", "Hi", spelling, str(tiny_chat_dir), "--json", *SETTINGS)
    facts = answer(outcome)
    assert (facts["pair"], facts["head"]) == (tiny_chat_dir.name, None)
    assert facts["target"] == str(tiny_chat_dir)
    assert outcome.err.startswith(f"no head is known for {tiny_chat_dir}: decoding without drafts")
    asked_for = ("--draft", "none")
    quiet = dspark("generate", "Hi", spelling, str(tiny_chat_dir), *asked_for, "--json", *SETTINGS)
    assert (answer(quiet)["token_ids"], quiet.err) == (facts["token_ids"], "")


def test_a_folder_with_a_head_of_ones_own_is_that_pair(dspark, tiny_chat_dir, head):
    hub.register("mine", str(tiny_chat_dir), str(head))
    outcome = dspark("generate", "Hi", "-p", str(tiny_chat_dir), "--json", *SETTINGS)
    assert (answer(outcome)["pair"], answer(outcome)["head"]) == ("mine", str(head))
    assert outcome.err == f"{tiny_chat_dir} is the target of the pair mine, whose head drafts\n"


def test_a_target_given_by_a_pairs_name_keeps_that_name(dspark, tiny_chat_dir, head):
    hub.register("mine", str(tiny_chat_dir), str(head))
    outcome = dspark("generate", "Hi", "--target", "mine", *SETTINGS)
    assert outcome.err.startswith("mine: 4 tokens")


def test_an_id_of_the_hub_is_fetched_and_then_here(dspark, server, monkeypatch):
    first = dspark("generate", "Hi", "-p", "owner/model", "--json", *SETTINGS)
    assert (answer(first)["pair"], answer(first)["head"]) == ("owner/model", None)
    assert "no head is known for owner/model" in first.err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = dspark("generate", "Hi", "-p", "owner/model", "--json", *SETTINGS)
    assert answer(again)["token_ids"] == answer(first)["token_ids"]
    with_head = dspark("generate", "Hi", "-p", "owner/model", "--draft", "owner/head", *SETTINGS)
    assert "HF_HUB_OFFLINE is set" in with_head.err


def test_an_id_runs_with_the_head_released_for_it(dspark, server, monkeypatch):
    released = replace(
        find.CATALOG.pairs["demo"],
        name="released",
        target=HubRepo("owner/model"),
        draft=HubRepo("owner/head"),
        target_num_bytes=1,
    )
    find.PAIRS["released"] = released
    outcome = dspark("generate", "Hi", "-p", "owner/model", "--json", *SETTINGS, *DRAFTING)
    facts = answer(outcome)
    assert facts["pair"] == "released" and facts["stats"]["drafted"] > 0
    assert outcome.err == "owner/model is the target of the pair released, whose head drafts\n"


@pytest.mark.parametrize("place", ["here", "hub"])
def test_a_head_is_no_target(dspark, server, head, place):
    name = str(head) if place == "here" else "owner/head"
    outcome = dspark("generate", "Hi", "-p", name)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert f"{name} is a head" in outcome.err
    assert f"--target TARGET --draft {name}" in outcome.err


def test_both_by_their_ids(dspark, server):
    outcome = dspark(
        *("generate", "Hi", "--target", "owner/model", "--draft", "owner/head", "--json"),
        *(*SETTINGS, *DRAFTING),
    )
    assert answer(outcome)["pair"] == "owner/model"
    assert answer(outcome)["stats"]["drafted"] > 0


@pytest.mark.parametrize("command", ["bench", "probe", "generate", "show", "graft"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./nope", "there is no folder ./nope"),
        ("/no/such/folder/", "there is no folder /no/such/folder/"),
        ("nope.gguf", "there is no file nope.gguf"),
        ("demmo", "Did you mean demo?"),
        ("", "empty name"),
        ("two words", "no pair is called 'two words'"),
        ("owner/missing", "no such model on the Hugging Face hub"),
    ],
)
def test_what_is_nothing_is_told_in_one_line(dspark, server, command, name, words):
    if command == "show" and name == "owner/missing":
        pytest.skip("show asks nobody")
    arguments = ["Hi", "-p", name] if command == "generate" else [name]
    outcome = dspark(command, *arguments)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert words in outcome.err


@pytest.mark.parametrize("command", ["bench", "probe", "show", "pull", "rm", "graft"])
def test_two_names_are_one_too_many(dspark, command):
    outcome = dspark(command, "demo", "--pair", "demo")
    assert (outcome.code, outcome.out) == (2, "")
    assert "two pairs are named" in outcome.err


@pytest.mark.parametrize("command", ["rm", "serve"])
def test_without_a_default_a_name_is_asked_for(dspark, command):
    options = ["--engine", "vllm"] if command == "serve" else []
    outcome = dspark(command, *options)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"dspark {command} needs a pair" in outcome.err


@pytest.mark.parametrize("spelling", [[], ["--pair"], ["-p"]])
def test_every_spelling_means_the_same(dspark, spelling):
    assert answer(dspark("show", *spelling, "demo", "--json"))["name"] == "demo"
    assert "already" not in dspark("pull", *spelling, "demo", "--dry-run").err
    assert dspark("rm", *spelling, "demo").out == "demo is not on disk\n"


def test_show_tells_a_head_from_a_target(dspark, server, tiny_chat_dir, head):
    shown = dspark("show", str(head)).out
    assert "none: this is a head, which drafts for a target" in shown and "block size" in shown
    assert answer(dspark("show", str(head), "--json"))["target"] is None
    target = answer(dspark("show", str(tiny_chat_dir), "--json"))
    assert (target["target"]["path"], target["draft"]) == (str(tiny_chat_dir), None)
    assert "not on disk; dspark pull owner/head fetches it" in dspark("show", "owner/head").out
    dspark("pull", "owner/head")
    assert answer(dspark("show", "owner/head", "--json"))["draft"]["block_size"] == 4
    assert server.files_sent() != []


@pytest.mark.parametrize("part", ["target", "draft"])
def test_show_says_that_a_folder_is_gone(dspark, tiny_chat_dir, head, tmp_path, part):
    moved = shutil.copytree(tiny_chat_dir if part == "target" else head, tmp_path / "moved")
    folders = (moved, head) if part == "target" else (tiny_chat_dir, moved)
    hub.register("mine", *map(str, folders))
    shutil.rmtree(moved)
    shown = "".join(dspark("show", "mine").out.split())  # wherever lines break
    assert f"{moved}isgone" in shown
    assert "fetchesit" not in shown
    assert (
        f"{moved}, the folder of mine, does not exist" in dspark("generate", "Hi", "-p", "mine").err
    )


def test_a_pull_says_what_is_here_already(dspark, server):
    first, second = dspark("pull", "owner/model"), dspark("pull", "owner/model")
    assert "already" not in first.err
    assert (second.out, second.err) == (first.out, "owner/model is already here\n")


def far_pair(target_bytes: int | None) -> pairs.Pair:
    return replace(
        find.CATALOG.pairs["demo"],
        name="far",
        target=HubRepo("owner/model", num_bytes=target_bytes),
        draft=HubRepo("owner/head", num_bytes=1_000_000),
        num_parameters=1_000_000,
        target_num_bytes=2_000_000,
    )


def test_offline_the_sizes_are_those_that_dspark_knows(dspark, server, monkeypatch):
    find.PAIRS["far"] = far_pair(2_000_000)
    listed = answer(dspark("pull", "far", "--dry-run", "--json"))
    assert listed["origin"] == "listing"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    plan = answer(dspark("pull", "far", "--dry-run", "--json"))
    assert (plan["origin"], plan["download_bytes"]) == ("registry", 3_000_000)
    text = dspark("pull", "far", "--dry-run").out
    assert text.count("sizes from dspark's own list") == 2 and "3.0 MB" in text
    find.PAIRS["far"] = far_pair(None)
    unknown = dspark("pull", "far", "--dry-run")
    assert (unknown.code, unknown.out) == (1, "")
    assert "HF_HUB_OFFLINE is set, so far is not fetched" in unknown.err


def test_a_network_that_is_missing_is_told_by_the_pairs_name(dspark, server, monkeypatch):
    find.PAIRS["far"] = far_pair(None)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for command in (["pull", "far"], ["generate", "Hi", "-p", "far"]):
        outcome = dspark(*command)
        assert outcome.code == 1
        assert "could not reach 127.0.0.1:9 to fetch far" in outcome.err
        assert "folder" not in outcome.err


@pytest.mark.parametrize("lacking", ["disk", "memory"])
def test_a_dry_run_of_what_does_not_fit_fails(dspark, monkeypatch, lacking):
    from dspark.hub import memory_fit, pull_plan

    if lacking == "disk":
        monkeypatch.setattr(pull_plan, "free_disk", lambda folder: 1000)
    else:
        monkeypatch.setattr(memory_fit, "rooms", lambda: [memory_fit.Room("cpu", 1000, 4)])
    outcome = dspark("pull", "demo", "--dry-run")
    assert (outcome.code, outcome.err) == (1, "")
    assert outcome.out.count("does not fit") == 1
    assert dspark("pull", "demo", "--dry-run", "--json").code == 1


def test_rm_takes_what_was_fetched_by_its_id(dspark, server):
    dspark("pull", "owner/model")
    assert "asks for confirmation to remove owner/model" in dspark("rm", "owner/model").err
    find.PAIRS["owned"] = replace(far_pair(1), name="owned", draft=None)
    refused = dspark("rm", "owner/model", "--yes")
    assert (refused.code, "belongs to the pair owned" in refused.err) == (2, True)
    del find.PAIRS["owned"]
    assert answer(dspark("rm", "owner/model", "--yes", "--json"))["freed_bytes"] > 10_000
    assert hub.kept_folder("owner/model") is None
    assert dspark("rm", "owner/model").out == "owner/model is not on disk\n"


@pytest.mark.parametrize("command", ["pull", "rm"])
def test_a_path_is_neither_fetched_nor_removed(dspark, tiny_chat_dir, command):
    outcome = dspark(command, str(tiny_chat_dir))
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert f"dspark chat {tiny_chat_dir}" in outcome.err
    assert (tiny_chat_dir / "config.json").is_file()


def test_show_tells_of_a_gguf_file(dspark, tmp_path):
    file = tmp_path / "model-q4.gguf"
    file.write_bytes(bytes(2000))
    shown = dspark("show", str(file)).out
    assert shown.startswith("model-q4\n")
    assert f"{file} (2.0 kB), converted when it is first used" in " ".join(shown.split())
    assert answer(dspark("show", str(file), "--json"))["target"] is None


def test_names_complete_whatever_the_list_of_own_pairs_holds(tmp_path, tiny_chat_dir):
    hub.register("mine", str(tiny_chat_dir), None)
    assert complete_pair("m") == ["mine"]
    (tmp_path / "store" / "pairs.json").write_text("torn {")
    assert complete_pair("m") == []
    assert "demo" in complete_pair("") and "qwen" in complete_pair("")
