"""A DeepSeek-V4 in the published layout whose files are damaged, or that memory and system fail
halfway through loading: one line with a way out, and the next attempt finds nothing in its way."""

import errno
import json
import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspark.checkpoints import deepseek_v4_target, safetensors_file
from dspark.checkpoints.deepseek_v4 import read_mapped_head
from dspark.checkpoints.model_folder import ModelFolder
from dspark.checkpoints.safetensors_dir import mapped_tensors, tensor_infos
from dspark.errors import CheckpointError, DSparkError, MemoryFullError
from dspark.targets.deepseek_v4_native import load_deepseek_v4
from tests.deepseek_v4_toy import write

INDEX = "model.safetensors.index.json"
WEIGHT = "layers.1.ffn.experts.3.w2.weight"
SCALE = "layers.1.ffn.experts.3.w2.scale"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v4")
    write(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "v4"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPARK_HOME", str(tmp_path / "home"))


def load(folder: Path) -> Any:
    return load_deepseek_v4(folder, tap_layers=())


def weight_map(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / INDEX).read_text())["weight_map"])


def put_map(folder: Path, places: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def shard_of(folder: Path, name: str) -> Path:
    return folder / weight_map(folder)[name]


def change(folder: Path, name: str, how: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    path = shard_of(folder, name)
    tensors = load_file(path)
    changed = how(tensors.pop(name))
    save_file(tensors if changed is None else tensors | {name: changed}, path)


def change_header(folder: Path, name: str, **fields: Any) -> None:
    path = shard_of(folder, name)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header[name] |= fields
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def another_shard(folder: Path) -> None:
    places = weight_map(folder)
    places[WEIGHT] = next(file for file in places.values() if file != places[WEIGHT])
    put_map(folder, places)


def twice(folder: Path) -> None:
    own = shard_of(folder, WEIGHT)
    other = next(each for each in sorted(folder.glob("*.safetensors")) if each != own)
    save_file(load_file(other) | {WEIGHT: load_file(own)[WEIGHT].clone()}, other)


def left_out(folder: Path) -> None:
    change(folder, WEIGHT, lambda _: None)
    put_map(folder, {n: file for n, file in weight_map(folder).items() if n != WEIGHT})


def cut_to(num_bytes: int) -> Callable[[Path], None]:
    """Counted from the end if negative."""

    def damage(folder: Path) -> None:
        path = shard_of(folder, WEIGHT)
        path.write_bytes(path.read_bytes()[:num_bytes])

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "shard-missing": (lambda folder: shard_of(folder, WEIGHT).unlink(), "lacks model-0"),
    "index-of-another-shard": (another_shard, "which lacks it"),
    "in-two-shards": (twice, f"{WEIGHT} is in "),
    "absent-but-indexed": (lambda f: change(f, WEIGHT, lambda _: None), "which lacks it"),
    "absent": (left_out, "w2"),
    "another-shape": (lambda f: change(f, WEIGHT, lambda t: t[:-1].contiguous()), WEIGHT),
    "scale-in-float": (lambda f: change(f, SCALE, lambda t: t.float()), SCALE),
    "scale-in-float8": (
        lambda f: change(f, SCALE, lambda t: t.view(torch.float8_e4m3fn)),
        SCALE,
    ),
    "scale-of-another-shape": (lambda f: change(f, SCALE, lambda t: t[:1].contiguous()), SCALE),
    "scale-absent": (lambda f: change(f, SCALE, lambda _: None), SCALE),
    "offset-outside": (
        lambda f: change_header(f, WEIGHT, data_offsets=[10**9, 10**9 + 1024]),
        "model-0",
    ),
    "offset-huge": (lambda f: change_header(f, WEIGHT, data_offsets=[2**70, 2**70 + 1024]), "0"),
    "cut-to-nothing": (cut_to(0), "truncated"),
    "cut-in-the-length": (cut_to(5), "truncated"),
    "cut-in-the-header": (cut_to(1000), "truncated"),
    "cut-by-a-byte": (cut_to(-1), "truncated"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line(folder: Path, damage: str) -> None:
    do, said = DAMAGES[damage]
    do(folder)
    with pytest.raises(CheckpointError) as failure:
        load(folder)
    assert said in failure.value.message
    assert failure.value.hint
    assert "\n" not in failure.value.message + failure.value.hint


def test_a_file_that_shrinks_before_it_is_mapped_is_told(folder: Path) -> None:
    """Its header was right when it was read."""
    opened = ModelFolder(folder)
    names = tensor_infos(opened).keys()
    path = shard_of(folder, WEIGHT)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="cut off"):
        mapped_tensors(opened, names)


def open_files(folder: Path) -> list[str]:
    links = (f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd"))
    return [p for p in map(os.path.realpath, links) if Path(p).is_relative_to(folder)]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted on Linux")
@pytest.mark.parametrize(
    ("error", "kind", "way_out"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryFullError, "Close other programs"),
        (OSError(errno.EMFILE, "Too many open files"), CheckpointError, "ulimit -n"),
        (OSError(errno.EIO, "Input/output error"), CheckpointError, "disk"),
        (MemoryError(), MemoryError, ""),
    ],
    ids=["memory", "open files", "disk", "python"],
)
def test_a_mapping_that_fails_halfway_leaves_nothing_open(
    folder: Path, monkeypatch, error: Exception, kind: type[Exception], way_out: str
) -> None:
    """The second shard cannot be mapped; then everything can be."""
    whole, calls = mmap.mmap, [0]

    def second_fails(*arguments: Any, **options: Any) -> mmap.mmap:
        calls[0] += 1
        if calls[0] == 2:
            raise error
        return whole(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors_file.mmap, "mmap", second_fails)
        with pytest.raises(kind) as failure:
            load(folder)
    if isinstance(failure.value, DSparkError):
        assert way_out in failure.value.hint and "again" not in failure.value.hint
        assert "\n" not in failure.value.message + failure.value.hint
    del failure
    error.__traceback__ = None  # it holds the frames, and they the files
    assert calls == [2] and open_files(folder) == []
    assert load(folder).spec


@pytest.mark.parametrize(
    "error",
    [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()],
    ids=["torch", "python"],
)
def test_memory_that_ends_halfway_through_loading_comes_back(
    folder: Path, monkeypatch, error: Exception
) -> None:
    whole, calls = deepseek_v4_target.file_weight, [0]

    def fails(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 30:
            raise error
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(deepseek_v4_target, "file_weight", fails)
        with pytest.raises(type(error)):
            load(folder)
    assert load(folder).spec


@pytest.mark.parametrize(
    "error",
    [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()],
    ids=["torch", "python"],
)
def test_slots_that_memory_does_not_hold_are_done_without(
    folder: Path, monkeypatch, error: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("dspark.models.expert_store.slots_for", lambda *sizes: 9)
    assert load(folder).expert_store is not None
    monkeypatch.setattr("dspark.models.expert_store.ExpertStore", full)
    assert load(folder).expert_store is None


def test_a_damaged_head_is_one_line_for_the_cpus_kernels_too(folder: Path) -> None:
    """The target itself still loads, for --draft none."""
    scale = "mtp.1.ffn.experts.3.w2.scale"
    change(folder, scale, lambda t: torch.full_like(t.view(torch.uint8), 255).view(t.dtype))
    with pytest.raises(CheckpointError, match="no number") as failure:
        read_mapped_head(folder)
    assert scale in failure.value.message and failure.value.hint
    assert load(folder).spec
    shard_of(folder, scale).unlink()
    with pytest.raises(CheckpointError) as failure:
        read_mapped_head(folder)
    assert "lacks model-0" in failure.value.message and failure.value.hint
