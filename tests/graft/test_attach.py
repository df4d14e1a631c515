"""A head that exists is found by what the base is, probed, and kept under a name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dspark import hub
from dspark.config import RuntimeConfig
from dspark.errors import InputError, PairMismatchError
from dspark.graft.attach import (
    AttachEvent,
    AttachJob,
    Registered,
    attach,
    check_name,
    keep_pair,
    match_head,
    released_head,
)
from dspark.graft.data import same_tokenizer
from dspark.hub.catalog import find
from dspark.hub.catalog.pairs import (
    HeadFacts,
    HubRepo,
    LocalFolder,
    Pair,
    TargetFacts,
)
from dspark.probe.self_test import ProbeReport
from dspark.progress import follow
from tests.graft import toy_pair

RUNTIME = RuntimeConfig(device="cpu", dtype="float32")


@pytest.fixture
def toy(sound: toy_pair.Sound) -> tuple[Path, Path]:
    return sound.base, sound.head


def _released(target: Path) -> Pair:
    return Pair(
        name="toy",
        description="",
        licence=None,
        target=LocalFolder(target),
        draft=HubRepo("somebody/head"),
        num_parameters=None,
        target_num_bytes=None,
        origins={},
        facts=TargetFacts("llama", 48, 5, toy_pair.VOCABULARY),
        head=HeadFacts("dspark", "deepspec"),
    )


@pytest.fixture
def released(toy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Pair:
    """The only released pair, its target in a folder."""
    pair = _released(toy[0])
    monkeypatch.setattr(find, "PAIRS", {"toy": pair})
    monkeypatch.setattr(hub, "PAIRS", find.PAIRS)
    return pair


def _tuned(base: Path, folder: Path, **changes: int) -> Path:
    """A copy of the base with other weights and the same text."""
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t * 1.01 for n, t in tensors.items()}, folder / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | changes))
    return folder


def test_a_tuned_base_matches(toy: tuple[Path, Path], released: Pair, tmp_path: Path) -> None:
    match = match_head(_tuned(toy[0], tmp_path / "tuned"))
    assert match.pair == released
    assert match.is_tokenizer_compared


def test_a_tuned_base_is_compared_with_the_released_head_it_matches(
    toy: tuple[Path, Path],
    released: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuned = _tuned(toy[0], tmp_path / "tuned")
    monkeypatch.setattr(hub, "draft_folder", lambda pair: toy[1] if pair == released else None)
    assert released_head(str(tuned), tuned) == toy[1]
    deeper = _tuned(toy[0], tmp_path / "deeper", num_hidden_layers=7)
    assert released_head(str(deeper), deeper) is None


def test_another_depth_does_not(toy: tuple[Path, Path], released: Pair, tmp_path: Path) -> None:
    match = match_head(_tuned(toy[0], tmp_path / "deeper", num_hidden_layers=7))
    assert match.pair is None
    assert match.nearest == released
    assert match.differences == ("its layers is 5, the base's 7",)


def test_another_tokenizer_does_not(toy: tuple[Path, Path], released: Pair, tmp_path: Path) -> None:
    tuned = _tuned(toy[0], tmp_path / "tuned")
    raw = json.loads((tuned / "tokenizer.json").read_text())
    vocabulary = raw["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tuned / "tokenizer.json").write_text(json.dumps(raw))
    assert match_head(tuned).pair is None
    assert match_head(tuned).differences == ("its tokenizer differs",)


def test_a_tokenizer_out_of_reach_is_said(
    toy: tuple[Path, Path], released: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same_tokenizer, "tokenizer_file", lambda pair: None)
    match = match_head(toy[0])
    assert match.pair == released
    assert not match.is_tokenizer_compared


def test_an_attached_head_is_probed_and_kept(toy: tuple[Path, Path]) -> None:
    base, head = toy
    job = AttachJob(str(base), base, str(head), head, name="mine", runtime=RUNTIME)
    events: list[AttachEvent] = []
    kept = follow(attach(job), events.append)
    report = events[-1]
    assert isinstance(report, ProbeReport) and report.fault is None
    assert kept == Registered("mine", is_new=True)
    assert hub.locate("mine") == hub.PairFiles("mine", base.resolve(), head.resolve())
    again = follow(attach(replace(job, name=None)))
    assert again == Registered("mine", is_new=False)


def test_a_misread_head_is_not_kept_unless_forced(toy: tuple[Path, Path], tmp_path: Path) -> None:
    base, head = toy[0], tmp_path / "misread"
    shutil.copytree(toy[1], head)
    raw = json.loads((head / "config.json").read_text())
    (head / "config.json").write_text(json.dumps(raw | {"mask_token_id": toy_pair.MASK - 1}))
    job = AttachJob(str(base), base, str(head), head, name="misread", runtime=RUNTIME)
    with pytest.raises(PairMismatchError, match="the mask token is 60, not 59") as caught:
        list(attach(job))
    assert "--force" in caught.value.hint
    assert hub.known_pair("misread") is None
    kept = follow(attach(replace(job, is_forced=True)))
    assert kept == Registered("misread", is_new=True)


def test_names(toy: tuple[Path, Path], tmp_path: Path) -> None:
    base, head = map(str, toy)
    other = _tuned(toy[0], tmp_path / "other")
    assert keep_pair(None, "runs/my head", base, head).name == "my-head"
    assert keep_pair(None, "runs/my head", base, head) == Registered("my-head", is_new=False)
    assert keep_pair(None, "my head", str(other), head).name == "my-head-2"
    assert keep_pair("short", "my head", base, head) == Registered("short", is_new=True)
    assert keep_pair(None, "demo", "demo", "demo") == Registered("demo", is_new=False)
    assert keep_pair("copy", "my head", "short", "short") == Registered("copy", is_new=True)
    assert hub.known_pair("copy").target == LocalFolder(toy[0].resolve())
    check_name("short", toy[1])
    check_name("free", toy[1])
    with pytest.raises(InputError, match="short"):
        check_name("short", tmp_path)
    with pytest.raises(InputError, match="short"):
        keep_pair("short", "my head", str(other), head)
