"""Repositories that have no name here are told from config and index, before a byte of weights."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dspark import hub
from dspark.checkpoints.heads import read_draft
from dspark.errors import CheckpointError, DownloadError, InputError, MemoryFullError
from dspark.hub import memory_fit
from dspark.hub.catalog import find
from dspark.hub.catalog.pairs import HubRepo
from dspark.hub.memory_needed import GPU_BYTES, PROGRAM_BYTES, TRANSFORMERS_BYTES, Room
from dspark.hub.sources.hf_cache import cached_folder
from tests.checkpoints import writers

from .hub_server import Hub, point_to, serving
from .test_hf_download import shard

HEAD, TARGET, OWN = "owner/head", "owner/target", "owner/own"
CONFIG = {"model_type": "llama", "auto_map": {"AutoModel": "modeling_own.Own"}}


@pytest.fixture
def server(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    head = writers.write_speculators(tmp_path / "head")
    index = {"weight_map": {"a": "1.safetensors", "mtp.0.b": "2.safetensors"}}
    repos = {
        HEAD: {path.name: path.read_bytes() for path in head.iterdir()},
        TARGET: {
            "config.json": json.dumps(CONFIG).encode(),
            "model.safetensors": shard(["a"], 0),
            "modeling_own.py": b"raise SystemExit",
        },
        OWN: {
            "config.json": json.dumps(
                {"model_type": "deepseek_v4", "dspark_block_size": 5}
            ).encode(),
            "1.safetensors": shard(["a"], 0),
            "2.safetensors": shard(["mtp.0.b"], 1),
            "model.safetensors.index.json": json.dumps(index).encode(),
        },
    }
    with serving(repos) as found:
        point_to(found, monkeypatch, tmp_path / "cache")
        yield found


def set_room(monkeypatch: pytest.MonkeyPatch, room: Room) -> None:
    """A machine of that memory, all of which can be used."""
    monkeypatch.setattr("dspark.hub.memory_needed.USABLE", 1.0)
    monkeypatch.setattr(memory_fit, "rooms", lambda: [room])


def weights_sent(server: Hub) -> list[str]:
    return [path for path in server.files_sent() if path.endswith("safetensors")]


def folder_of(repo_id: str, **settings: Any) -> Path:
    found = hub.look_up(repo_id, **settings)
    list(hub.fetch_published(found))
    folder = cached_folder(found.repo)
    assert folder is not None
    return folder


def test_what_a_repository_holds_is_told_before_its_weights(server: Hub) -> None:
    found = [hub.look_up(repo_id) for repo_id in (HEAD, TARGET, OWN)]
    assert [(each.kind, each.options) for each in found] == [
        ("a head in the layout speculators", f"--target TARGET --draft {HEAD}"),
        ("a target without a head", f"--target {TARGET}"),
        ("a target with its own DSpark head", f"--target {OWN} --draft {OWN}"),
    ]
    assert weights_sent(server) == []


def test_a_head_comes_and_is_read_and_no_code_with_a_target(server: Hub) -> None:
    assert read_draft(folder_of(HEAD))[0].block_size == 7
    assert {path.name for path in folder_of(TARGET).iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    before = len(weights_sent(server))
    assert folder_of(HEAD) and len(weights_sent(server)) == before


def test_the_head_alone_out_of_a_targets_shards(server: Hub) -> None:
    assert folder_of(OWN, only_head=True)
    assert weights_sent(server) == ["2.safetensors"]
    with pytest.raises(InputError, match="without a head"):
        hub.look_up(TARGET, only_head=True)


LAYERS = {"model_type": "qwen3", "layer_types": ["sliding_attention"]}
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "kimi": ({"architectures": ["K3DSparkModel"]}, "Kimi", "ATOM"),
    "minimax": ({"architectures": ["DSparkMiniMaxDraftModel"]}, "MiniMax", "SGLang"),
    "nemotron": (
        {"architectures": ["DSparkDraftModel"], "dflash_config": {"attention_sink_bias": True}},
        "Nemotron",
        "vLLM",
    ),
    "sliding": ({"transformer_layer_config": LAYERS}, "sliding window", "vLLM"),
    "row": ({"sample_from_anchor": None, "speculators_config": {}}, "sample_from_anchor", "row"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_head_that_cannot_be_run_is_refused_before_its_weights(
    name: str, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, word, engine = REFUSED[name]
    files = server.repos[HEAD]
    raw = json.loads(files["config.json"])
    if "architectures" in changes:
        raw = {"block_size": 7}
    files["config.json"] = json.dumps(raw | changes).encode()
    pair = replace(find.PAIRS["qwen3-4b"], target=HubRepo(TARGET), draft=HubRepo(HEAD))
    monkeypatch.setitem(find.PAIRS, "far", replace(pair, name="far"))
    for attempt in (
        lambda: hub.look_up(HEAD),
        lambda: list(hub.fetch_missing(HEAD)),
        lambda: hub.plan_pull("far"),
        lambda: list(hub.fetch("far", is_forced=True)),
    ):
        with pytest.raises(CheckpointError, match=word) as failure:
            attempt()
        assert engine in failure.value.hint
        assert "\n" not in failure.value.message + failure.value.hint
    assert weights_sent(server) == []


def test_what_no_memory_holds_is_fetched_by_force_alone(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_room(monkeypatch, Room("cpu", PROGRAM_BYTES + TRANSFORMERS_BYTES + 2_400_000, 4))
    found = hub.look_up(OWN)  # 800 kB packed, 2.7 MB where FP8 is de-quantised
    assert found.plan.memory_needed and not found.plan.fits_memory
    for attempt in (hub.fetch_published(found), hub.fetch_missing(OWN)):
        with pytest.raises(MemoryFullError, match="FP8 unpacked") as failure:
            list(attempt)
        assert "--force" in failure.value.hint and weights_sent(server) == []
    assert list(hub.fetch_published(found, is_forced=True))
    set_room(monkeypatch, Room("cuda", GPU_BYTES + 2_400_000, 2, True))
    assert hub.look_up(OWN).plan.fits_memory


def test_a_pair_of_ones_own_is_measured_before_its_weights(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_room(monkeypatch, Room("cpu", PROGRAM_BYTES + TRANSFORMERS_BYTES + 600_000, 4))
    hub.register("mine", TARGET, HEAD)
    with pytest.raises(MemoryFullError, match="mine needs"):
        list(hub.fetch("mine"))
    assert weights_sent(server) == []
    list(hub.fetch("mine", is_forced=True))
    assert hub.locate("mine") is not None


def test_gguf_alone_and_no_model_at_all_are_told(server: Hub) -> None:
    server.repos["owner/gguf"] = {"model.Q4_0.gguf": b"GGUF"}
    server.repos["owner/text"] = {"README.md": b"Hello"}
    for repo_id, word in (("owner/gguf", "model.gguf"), ("owner/text", "not a model")):
        with pytest.raises(DownloadError, match=r"no config\.json") as failure:
            hub.look_up(repo_id)
        assert word in failure.value.hint.lower()


def test_a_name_or_a_folder_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert [hub.is_repo_id(name) for name in ("owner/name", "a/b", "qwen3-4b", "a/b/c")] == [
        True,
        False,
        False,
        False,
    ]
