"""Pairs from the Hugging Face hub into its cache, over bad lines and many interruptions."""

import errno
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.numpy import save

from dspark import hub
from dspark.checkpoints.detect import Packaging
from dspark.errors import DownloadError, StorageError, UnknownNameError
from dspark.hub.catalog import find
from dspark.hub.catalog.pairs import (
    HeadFacts,
    HubRepo,
    Pair,
    TargetFacts,
)
from dspark.hub.memory_needed import Room, cache_bytes, pass_bytes, program_bytes
from dspark.hub.sources.hf_cache import cached_folder, repo_folder
from dspark.hub.sources.hf_download import fetch_repo

from .hub_server import COMMIT, Hub, blob_id, point_to, serving

TARGET, HEAD, WHOLE = "owner/target", "owner/head", "owner/whole"


def shard(names: list[str], seed: int, num_values: int = 100_000) -> bytes:
    import numpy as np

    draw = np.random.default_rng(seed)
    return save({name: draw.normal(size=num_values).astype("float32") for name in names})


def as_json(content: object) -> bytes:
    return json.dumps(content).encode()


CONFIG = {
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.fixture(scope="module")
def repos() -> dict[str, dict[str, bytes]]:
    first, second = shard(["a", "b"], 0), shard(["c", "mtp.0.d"], 1)
    names = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}
    index = as_json({"weight_map": names | {"mtp.0.d": "2.safetensors"}})
    unwanted = {
        "modeling_own.py": b"raise SystemExit",
        "pytorch_model.bin": b"a pickle",
        "original/consolidated.safetensors": b"the same again",
        "consolidated.safetensors": b"the same again",
    }
    sharded = {
        "config.json": as_json(CONFIG),
        "tokenizer.json": b"{}",
        "empty.json": b"",
        "1.safetensors": first,
        "2.safetensors": second,
        "model.safetensors.index.json": index,
        **unwanted,
    }
    head = {"config.json": as_json({"block_size": 4}), "model.safetensors": shard(["h"], 2)}
    return {TARGET: sharded, HEAD: head, WHOLE: sharded}


@pytest.fixture
def server(repos, tmp_path, home, monkeypatch) -> Iterator[Hub]:
    with serving({name: dict(files) for name, files in repos.items()}) as found:
        point_to(found, monkeypatch, tmp_path / "cache")
        yield found


@pytest.fixture(autouse=True)
def pair(monkeypatch) -> Pair:
    """`far`, whose target and head are repositories."""
    far = Pair(
        name="far",
        description="A pair on the hub.",
        licence=None,
        target=HubRepo(TARGET),
        draft=HubRepo(HEAD),
        num_parameters=None,
        target_num_bytes=None,
        origins={},
        facts=TargetFacts("llama", 64, 2, 100),
        head=HeadFacts("dspark", Packaging.DEEPSPEC),
    )
    monkeypatch.setitem(find.PAIRS, "far", far)
    return far


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_target_and_head_come_whole_and_without_code(server, repos) -> None:
    assert hub.locate("far") is None
    steps = list(hub.fetch("far"))
    files = hub.locate("far")
    assert files is not None and files.draft is not None
    unwanted = ("py", "bin", "consolidated.safetensors")
    wanted = {name: b for name, b in repos[TARGET].items() if not name.endswith(unwanted)}
    assert files_in(files.target) == wanted
    assert files_in(files.draft) == repos[HEAD]
    assert files.target.name == COMMIT
    assert server.tokens == {"Bearer hf_test"}
    assert {step.name for step in steps} >= {f"{TARGET}/1.safetensors", f"{HEAD}/config.json"}
    before = len(server.asked)
    assert list(hub.fetch("far")) == []
    assert len(server.asked) == before


def test_twenty_interruptions_at_random(server, repos, tmp_path) -> None:
    draw = random.Random(0)
    interruptions = 0
    while interruptions < 20:
        server.breaks[:] = [draw.randrange(1, 20_000) for _ in range(99)]
        steps_left = draw.randrange(1, 9)
        steps = hub.fetch("far")
        for _ in steps:
            steps_left -= 1
            if steps_left == 0:
                break
        else:
            pytest.fail("the download was to be longer than that")
        steps.close()
        interruptions += 1
        assert hub.locate("far") is None
    server.breaks.clear()
    for _ in hub.fetch("far"):
        pass
    files = hub.locate("far")
    assert files is not None
    cache = tmp_path / "cache"
    for repo_id, folder in ((TARGET, files.target), (HEAD, files.draft)):
        for name, content in files_in(folder).items():
            assert blob_id(name, content) == blob_id(name, repos[repo_id][name])
    assert not [path for path in cache.rglob("*") if "incomplete" in path.name]
    assert any(asked[2] for asked in server.asked), "no download went on where it had ended"


HEADER = 8 + int.from_bytes(shard(["h"], 2)[:8], "little")
WHOLE_HEAD = len(shard(["h"], 2))


@pytest.mark.parametrize("cut", [1, 7, 8, 9, HEADER, HEADER + 1, WHOLE_HEAD // 2, WHOLE_HEAD - 1])
def test_cut_at_a_byte_it_goes_on_from_there(server, repos, cut) -> None:
    """Of no byte before, within and after the header is half a file taken for a whole one."""
    server.breaks[:] = [cut, *[0] * 9]
    with pytest.raises(DownloadError, match=f"stopped at {cut:,} of") as failure:
        list(fetch_repo(HubRepo(HEAD)))
    assert "resumes" in failure.value.hint
    assert cached_folder(HubRepo(HEAD)) is None
    server.breaks.clear()
    before = len(server.asked)
    list(fetch_repo(HubRepo(HEAD)))
    folder = cached_folder(HubRepo(HEAD))
    assert folder is not None and files_in(folder) == repos[HEAD]
    assert f"bytes={cut}-" in [asked[2] for asked in server.asked[before:]]


class Failing:
    """A file that takes `room` more bytes."""

    def __init__(self, file: Any, room: int, error: Exception) -> None:
        self.file, self.room, self.error = file, room, error

    def __enter__(self) -> "Failing":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: self.room])
        self.room -= len(data)
        if self.room < 0:
            raise self.error


@pytest.mark.parametrize(
    ("error", "kind", "way_out"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError, "Free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), StorageError, "Free some space"),
        (OSError(errno.EROFS, "Read-only file system"), StorageError, "Check its permissions"),
        (MemoryError(), MemoryError, ""),
    ],
    ids=["full", "quota", "read-only", "memory"],
)
def test_what_fails_on_the_way_keeps_what_came(
    server, repos, monkeypatch, error, kind, way_out
) -> None:
    whole_open = Path.open

    def opened(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        file = whole_open(path, mode, *more, **options)
        is_part = path.name.endswith("incomplete") and "r" not in mode
        return Failing(file, 50_000, error) if is_part else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(kind) as failure:
            list(fetch_repo(HubRepo(HEAD)))
    if isinstance(failure.value, StorageError):
        told = failure.value.message + failure.value.hint
        assert "None" not in told and "\n" not in told and failure.value.hint.startswith(way_out)
    assert cached_folder(HubRepo(HEAD)) is None
    list(fetch_repo(HubRepo(HEAD)))  # no lock is left either
    folder = cached_folder(HubRepo(HEAD))
    assert folder is not None and files_in(folder) == repos[HEAD]
    assert "bytes=50000-" in [asked[2] for asked in server.asked]


def test_the_disk_is_looked_at_before_the_first_byte(server, monkeypatch) -> None:
    import shutil

    usage = type(shutil.disk_usage("/"))(1, 1, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match="are free") as failure:
        list(hub.fetch("far"))
    assert "HF_HOME" in failure.value.hint
    assert not [path for path in server.files_sent() if path.endswith("safetensors")]


def test_another_content_than_listed_is_not_kept(server, repos, tmp_path) -> None:
    broken = bytearray(repos[TARGET]["1.safetensors"])
    broken[5000] ^= 1
    server.lies["1.safetensors"] = bytes(broken)
    with pytest.raises(DownloadError, match="discarded"):
        list(hub.fetch("far"))
    assert hub.locate("far") is None
    assert not list((tmp_path / "cache").rglob("*incomplete*"))
    server.lies.clear()
    list(hub.fetch("far"))
    assert hub.locate("far") is not None


@pytest.mark.parametrize("name", ["../../evil.safetensors", "/evil.safetensors", "no.safetensors"])
def test_an_index_that_points_elsewhere_is_refused(server, name) -> None:
    server.repos[TARGET]["model.safetensors.index.json"] = as_json({"weight_map": {"a": name}})
    with pytest.raises(DownloadError, match="which its index names"):
        list(hub.fetch("far"))


def test_a_listing_that_leads_out_of_the_folder_is_not_followed(server, tmp_path) -> None:
    for name in ("../evil.json", "dspark/../../evil.json", "..\\evil.json"):
        server.repos[HEAD][name] = b"{}"
    list(hub.fetch("far"))
    assert not list(tmp_path.rglob("evil*"))


def test_a_head_in_its_targets_shards_brings_only_those(server) -> None:
    head = HubRepo(WHOLE, tensor_prefix="mtp.")
    list(fetch_repo(head))
    folder = cached_folder(head)
    assert folder is not None
    assert {path.name for path in folder.glob("*.safetensors")} == {"2.safetensors"}
    assert cached_folder(HubRepo(WHOLE)) is None
    assert "1.safetensors" not in server.files_sent()


def test_a_dry_run_fetches_no_weights(server, repos, tmp_path) -> None:
    plan = hub.plan_pull("far")
    asked = server.files_sent()
    assert asked and not [path for path in asked if path.endswith("safetensors")]
    assert not (tmp_path / "cache").exists()
    wanted = {"config.json", "tokenizer.json", "empty.json", "model.safetensors.index.json"}
    wanted |= {"1.safetensors", "2.safetensors"}
    assert {file.path for file in plan.files if file.source == TARGET} == wanted
    everything = [repos[TARGET][path] for path in wanted] + list(repos[HEAD].values())
    assert plan.download_bytes == plan.disk_needed == sum(map(len, everything))
    weights = [name for name in wanted if name.endswith("safetensors")]
    cache = 2 * 2 * 4 * 16 * 4096 * 4  # keys and values, layers, heads, sizes, float32
    stored = [repos[TARGET][name] for name in weights] + [repos[HEAD]["model.safetensors"]]
    of, room = plan.footprint, Room("cpu", 0, 4)
    assert of is not None and cache_bytes(of, room) == cache
    held = 4 * sum(len(content) // 2 for content in stored)  # bfloat16 on disk
    held += 4 * of.vocab_size * of.hidden_size + cache
    assert plan.memory_needed == held + pass_bytes(of, room) + program_bytes(of, room)
    assert plan.fits_disk and plan.fits_memory
    list(hub.fetch("far"))
    again = hub.plan_pull("far")
    assert (again.download_bytes, again.disk_needed) == (0, 0)


def test_the_head_alone(server) -> None:
    assert {file.source for file in hub.plan_pull("far", only_head=True).files} == {HEAD}
    list(hub.fetch("far", only_head=True))
    assert hub.draft_folder(hub.find_pair("far")) is not None
    assert hub.locate("far") is None


def test_what_another_pair_needs_is_not_removed(server, pair, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(find.PAIRS, "bare", replace(pair, name="bare", draft=None))
    list(hub.fetch("far"))
    head = repo_folder(HubRepo(HEAD))
    held = sum(path.stat().st_size for path in (head / "blobs").iterdir())
    assert held <= hub.remove("far") < held + 1000
    assert (hub.locate("far"), head.exists()) == (None, False)
    assert hub.locate("bare") is not None
    hub.remove("bare")
    assert not repo_folder(HubRepo(TARGET)).exists()


def test_offline_says_so(server, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set, so far") as failure:
        list(hub.fetch("far"))
    assert "HF_HUB_OFFLINE" in failure.value.hint
    assert server.asked == []


KILLED = """
from dspark.hub.catalog.pairs import HubRepo
from dspark.hub.sources.hf_download import fetch_repo
for step in fetch_repo(HubRepo("owner/head")):
    if step.done > 100_000:
        print("on the way", flush=True)
"""


def test_a_process_that_is_killed_leaves_what_it_had(server, repos, home, tmp_path) -> None:
    server.hold = threading.Event()
    settings = {"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
    settings |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | settings) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on the way\n"
        process.kill()
    server.hold.set()
    server.hold = None
    before = len(server.asked)
    list(fetch_repo(HubRepo(HEAD)))
    folder = cached_folder(HubRepo(HEAD))
    assert folder is not None and files_in(folder) == repos[HEAD]
    assert [asked for asked in server.asked[before:] if asked[2]], "it began anew"
    assert not list((tmp_path / "cache").rglob("*incomplete*"))


def test_an_id_is_fetched_once_with_its_progress(server, tiny_llama_dir) -> None:
    names = ("config.json", "model.safetensors")
    server.repos["owner/model"] = {name: (tiny_llama_dir / name).read_bytes() for name in names}
    steps = list(hub.fetch_missing("owner/model"))
    assert steps[-1].done == steps[-1].total == len(server.repos["owner/model"][names[1]])
    before = len(server.asked)
    assert list(hub.fetch_missing("owner/model")) == []
    assert files_in(hub.resolve_target("owner/model")) == server.repos["owner/model"]
    assert len(server.asked) == before
    assert [list(hub.fetch_missing(name)) for name in ("far", "none", "no-such")] == [[], [], []]


def test_the_head_of_a_pair_serves_another_target(server) -> None:
    with pytest.raises(UnknownNameError) as failure:
        hub.resolve_draft("far")
    assert "dspark pull far --head-only" in failure.value.hint
    list(hub.fetch("far", only_head=True))
    assert hub.resolve_draft("far") == cached_folder(HubRepo(HEAD))
