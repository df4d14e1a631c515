"""What other programs left in the Hugging Face cache is made whole, or what it lacks is named."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspark import hub
from dspark.errors import DownloadError
from dspark.hub.catalog.pairs import HubRepo
from dspark.hub.sources.hf_cache import cached_folder, is_known_whole

from .hub_server import COMMIT, Hub, blob_id, point_to, serving
from .test_hf_download import shard

WHOLE, SHARDS = "owner/whole", "owner/shards"
CONFIG = json.dumps({"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1}).encode()
WORDS = {
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "generation_config.json": b'{"eos_token_id": [1, 2]}',
    "chat_template.jinja": b"{{ messages }}",
}
INDEX = {
    "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
}


@pytest.fixture
def server(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    whole = {"config.json": CONFIG, "model.safetensors": shard(["a", "b"], 0), **WORDS}
    shards = {
        "config.json": CONFIG,
        "model-00001-of-00002.safetensors": shard(["a"], 0),
        "model-00002-of-00002.safetensors": shard(["b"], 1),
        "model.safetensors.index.json": json.dumps(INDEX).encode(),
        **WORDS,
    }
    with serving({WHOLE: whole, SHARDS: shards}) as found:
        point_to(found, monkeypatch, tmp_path / "cache")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield found


def leave(server: Hub, repo_id: str, names: list[str], cache: Path) -> Path:
    """Some files of a commit, as another program leaves them."""
    folder = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for each in (snapshot, folder / "refs", folder / "blobs"):
        each.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for name in names:
        content = server.repos[repo_id][name]
        blob = folder / "blobs" / blob_id(name, content)
        blob.write_bytes(content)
        os.symlink(os.path.relpath(blob, snapshot), snapshot / name)
    return snapshot


@pytest.mark.parametrize(
    ("repo_id", "there"),
    [
        (WHOLE, ["config.json"]),
        (WHOLE, ["config.json", "model.safetensors"]),
        (WHOLE, ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]),
        (SHARDS, ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json"]),
        (SHARDS, ["config.json", "model.safetensors.index.json"]),
    ],
)
def test_what_is_missing_comes_and_the_hub_is_asked_once(
    server: Hub, tmp_path: Path, repo_id: str, there: list[str]
) -> None:
    snapshot = leave(server, repo_id, there, tmp_path / "cache")
    assert hub.may_lack(repo_id)
    assert list(hub.fetch_missing(repo_id))
    assert {path.name for path in snapshot.iterdir()} == set(server.repos[repo_id])
    sent = [path for path in server.files_sent() if path.endswith("safetensors")]
    assert not set(sent) & set(there)
    asked = len(server.tokens), len(server.asked)
    assert not hub.may_lack(repo_id) and is_known_whole(HubRepo(repo_id))
    assert list(hub.fetch_missing(repo_id)) == []
    assert cached_folder(HubRepo(repo_id)) == snapshot
    assert (len(server.tokens), len(server.asked)) == asked


def test_a_file_that_goes_later_comes_again(server: Hub, tmp_path: Path) -> None:
    list(hub.fetch_missing(WHOLE))
    folder = cached_folder(HubRepo(WHOLE))
    assert folder is not None and not hub.may_lack(WHOLE)
    (folder / "generation_config.json").unlink()
    assert hub.may_lack(WHOLE)
    list(hub.fetch_missing(WHOLE))
    assert (folder / "generation_config.json").read_bytes() == WORDS["generation_config.json"]


@pytest.mark.parametrize("how", ["offline", "unreachable"])
def test_out_of_reach_what_is_surely_missing_is_named(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    base = ["config.json", "model.safetensors"]
    leave(server, WHOLE, base, tmp_path / "cache")
    if how == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"without tokenizer\.json") as failure:
        list(hub.fetch_missing(WHOLE))
    assert "\n" not in failure.value.message + failure.value.hint
    words = tmp_path / "cache" / "models--owner--whole" / "snapshots" / COMMIT / "tokenizer.json"
    words.write_bytes(b"{}")
    assert list(hub.fetch_missing(WHOLE)) == []  # a base model may have no more than this


def test_half_of_the_shards_is_not_a_model(server: Hub, tmp_path: Path) -> None:
    leave(server, SHARDS, ["config.json", "model-00001-of-00002.safetensors"], tmp_path / "cache")
    assert cached_folder(HubRepo(SHARDS)) is None


def test_a_known_pair_is_mended_too(server: Hub, tmp_path: Path) -> None:
    hub.register("mine", WHOLE, None)
    leave(server, WHOLE, ["config.json", "model.safetensors"], tmp_path / "cache")
    assert hub.locate("mine") is not None and hub.may_lack("mine")
    assert list(hub.fetch("mine"))
    files = hub.locate("mine")
    assert files is not None and (files.target / "generation_config.json").is_file()
    assert not hub.may_lack("mine") and list(hub.fetch("mine")) == []
