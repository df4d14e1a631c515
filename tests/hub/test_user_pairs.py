"""Pairs of the user's own: they survive a round trip, and a name means one thing."""

import subprocess
import sys

import pytest

from dspark import hub
from dspark.errors import CheckpointError, InputError, UnknownNameError
from dspark.hub.catalog.pairs import (
    HubRepo,
    LocalFolder,
    OtherPair,
    TargetFacts,
)


def test_a_pair_of_two_folders_is_found_by_its_name(tiny_llama_dir, tmp_path, home) -> None:
    draft = tmp_path / "head"
    draft.mkdir()
    facts = TargetFacts("llama", 48, 3, 100)
    kept = hub.register("mine", str(tiny_llama_dir), str(draft), facts=facts)
    assert hub.find_pair("mine") == kept == hub.registered_pairs()["mine"]
    assert (kept.target, kept.draft) == (LocalFolder(tiny_llama_dir), LocalFolder(draft))
    assert kept.facts == facts
    assert hub.locate("mine") == hub.PairFiles("mine", tiny_llama_dir, draft)
    assert hub.resolve_target("mine") == tiny_llama_dir
    assert [path.name for path in home.iterdir() if "part" in path.name] == []
    assert hub.remove("mine") == 0
    assert "mine" not in hub.known_pairs()
    assert (tiny_llama_dir / "config.json").is_file()
    with pytest.raises(UnknownNameError):
        hub.unregister("mine")


def test_a_target_may_be_an_alias_or_a_hub_id() -> None:
    hub.register("one", "demo", "owner/head")
    hub.register("two", "owner/target", None)
    assert hub.find_pair("one").target == OtherPair("demo")
    assert hub.find_pair("one").draft == HubRepo("owner/head")
    assert hub.find_pair("two").target == HubRepo("owner/target")
    assert hub.locate("one") is None


@pytest.mark.parametrize("name", ["demo", "qwen3-4b:dspark", "qwen", "a/b", "", "../x"])
def test_names_that_cannot_be_had(name, tiny_llama_dir) -> None:
    with pytest.raises(InputError):
        hub.register(name, str(tiny_llama_dir), None)
    assert hub.registered_pairs() == {}


def test_a_name_is_given_once_unless_replaced(tiny_llama_dir) -> None:
    hub.register("mine", str(tiny_llama_dir), None)
    with pytest.raises(InputError, match="named mine already exists"):
        hub.register("mine", "demo", None)
    hub.register("mine", "demo", None, replace=True)
    assert hub.find_pair("mine").target == OtherPair("demo")


def test_what_is_nowhere_is_not_registered() -> None:
    with pytest.raises(UnknownNameError):
        hub.register("mine", "no-such-folder", None)


def test_a_folder_that_is_gone_is_named(tmp_path, tiny_llama_dir) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    hub.register("mine", str(gone), None)
    gone.rmdir()
    assert hub.locate("mine") is None
    with pytest.raises(UnknownNameError, match="does not exist") as failure:
        list(hub.fetch("mine"))
    assert "dspark rm mine" in failure.value.hint


@pytest.mark.parametrize("text", ["{", "[]", '{"mine": {"target": "demo"}}', '{"mine": 3}'])
def test_a_broken_file_is_told_in_one_line(home, text) -> None:
    home.mkdir()
    (home / "pairs.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"pairs\.json cannot be read") as failure:
        hub.registered_pairs()
    assert "\n" not in failure.value.message


@pytest.mark.parametrize("name", ["register", "find_pair", "fetch"])
def test_any_name_of_the_store_may_be_used_first(name):
    code = f"from dspark import hub\nhub.{name}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
