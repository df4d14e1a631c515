"""What a user may call a model, and what they are told where it is none."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dspark import hub
from dspark.errors import CheckpointError, UnknownNameError
from dspark.hub import footprint, memory_needed


def test_a_folder_is_itself(tiny_llama_dir) -> None:
    assert hub.resolve_target(str(tiny_llama_dir)) == tiny_llama_dir
    files = hub.locate(str(tiny_llama_dir))
    assert files == hub.PairFiles(tiny_llama_dir.name, tiny_llama_dir, None)


def test_none_is_no_draft() -> None:
    assert hub.resolve_draft("none") is None


@pytest.mark.parametrize("name", ["./no-such", "no-such", "/no/such/folder", "a/b/c", ""])
def test_what_is_nowhere(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name:
        assert hub.locate(name) is None
    with pytest.raises((UnknownNameError, CheckpointError)) as failure:
        hub.resolve_target(name)
    assert failure.value.hint


def test_an_alias_that_is_not_fetched_says_how() -> None:
    with pytest.raises(UnknownNameError) as failure:
        hub.resolve_target("demo")
    assert failure.value.hint == "Run dspark pull demo first."


def test_a_file_is_not_a_folder(tiny_llama_dir) -> None:
    with pytest.raises(CheckpointError, match="is a file"):
        hub.resolve_target(str(tiny_llama_dir / "config.json"))


@pytest.fixture
def copy(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((tiny_llama_dir / name).read_bytes())
    return folder


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_truncated_weights_are_told_without_reading_them(copy, keep) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    for ask in (hub.resolve_target, hub.resolve_draft, hub.locate):
        with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
            ask(str(copy))


def test_missing_and_broken_files_are_named(copy) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
        hub.resolve_target(str(copy))
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        hub.resolve_target(str(copy))
    (copy / "config.json").write_text("{}")
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model\.safetensors"):
        hub.resolve_target(str(copy))


ASK = """
import sys
from dspark import hub
from dspark.errors import DSparkError
for name in sys.argv[1:]:
    try:
        print(hub.resolve_target(name))
    except DSparkError as error:
        print(type(error).__name__, error.message, "|", error.hint)
"""


class _Refuses(BaseHTTPRequestHandler):
    """A Hugging Face hub of which every repository is gated, missing or broken."""

    def do_GET(self) -> None:
        status, code = 500, ""
        if "/gated/" in self.path:
            status, code = 403, "GatedRepo"
        elif "/missing/" in self.path:
            status, code = 404, "RepoNotFound"
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_what_the_hub_refuses(tmp_path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refuses) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        settings = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        answers = _ask(["gated/model", "missing/model", "broken/model"], tmp_path, settings)
        server.shutdown()
        thread.join()
    gated, missing, broken = answers
    assert gated.startswith("DownloadError gated/model is gated on the Hugging Face hub | Ask")
    assert missing.startswith("UnknownNameError there is no folder missing/model, and no such")
    assert broken.startswith("DownloadError ")


def test_the_hub_cannot_be_reached(tmp_path) -> None:
    (answer,) = _ask(["owner/model"], tmp_path, {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert answer.startswith("HubUnreachableError there is no folder owner/model, and 127.0.0.1:9")


def test_offline_the_cache_is_enough(tiny_llama_dir, tmp_path) -> None:
    repo = tmp_path / "hub" / "models--owner--model"
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_bytes((tiny_llama_dir / name).read_bytes())
    (repo / ".no_exist" / ("a" * 40)).mkdir(parents=True)  # as another program notes it
    (repo / ".no_exist" / ("a" * 40) / "tokenizer.json").touch()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    cached, absent = _ask(["owner/model", "owner/other"], tmp_path, {"HF_HUB_OFFLINE": "1"})
    assert cached == str(snapshot)
    assert absent.startswith(
        "HubUnreachableError there is no folder owner/other, and HF_HUB_OFFLINE"
    )


def _ask(names: list[str], folder: Path, settings: dict[str, str]) -> list[str]:
    """In a process of its own, since the library reads its settings when imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = kept | {"HF_HOME": str(folder), "NO_PROXY": "127.0.0.1", **settings}
    command = [sys.executable, "-c", ASK, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_memory_is_counted_from_headers(tiny_llama_dir, tiny_qwen3_dir) -> None:
    from transformers import AutoModelForCausalLM

    for folder, head_dim in ((tiny_llama_dir, 12), (tiny_qwen3_dir, 16)):
        model = AutoModelForCausalLM.from_pretrained(folder)
        weights = sum(p.numel() for p in model.parameters())
        of = footprint.of_folders(folder, None)
        assert of.values == weights and of.is_dense
        cache = 2 * 3 * 2 * head_dim * 4096  # keys and values, layers, heads, sizes, tokens
        for value_bytes, copy in ((4, 96 * 48), (2, 0)):  # in float32 the output head is packed
            room = memory_needed.Room("cpu", 0, value_bytes)
            assert memory_needed.cache_bytes(of, room) == value_bytes * cache
            assert memory_needed.weight_bytes(of, room) == value_bytes * (weights + copy)
