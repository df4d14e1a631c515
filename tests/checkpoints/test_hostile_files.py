"""Files that mean harm: refused in one line, memory bounded, nothing executed.

Random damage has a fixed seed. Whatever it does, the outcome is a model or one of our own errors.
"""

import errno
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dspark.checkpoints.heads import check_published, read_draft
from dspark.errors import CheckpointError, DSparkError, MemoryFullError
from dspark.hub.footprint import cache_values
from dspark.targets.load import load_target
from dspark.text.stream import TextCodec
from tests.checkpoints import writers
from tests.checkpoints.test_target_files import shard

ODD_VALUES = [
    *(None, True, 0, -1, 3, 10**9, 10**12, 10**40, 0.5, 1e300, -1e300, "", "x", "48"),
    *([], [1], ["a"], [[]], {}, {"rope_type": "yarn"}, {"factor": []}),
]
HEADS: dict[str, Callable[[Path], Path]] = {
    "deepspec": writers.write_deepspec,
    "speculators": writers.write_speculators,
    "specforge": writers.write_specforge,
    "eagle3": lambda folder: writers.write_deepspec(folder, "eagle3"),
    "gemma4": lambda folder: writers.write_deepspec(folder, "gemma4_eagle3"),
}


def read_target(folder: Path) -> None:
    load_target(
        folder, tap_layers=(), device=torch.device("cpu"), dtype=torch.float32, prepack=False
    )


@pytest.fixture(params=[*HEADS, "target"])
def model(request, tmp_path, tiny_qwen3_dir) -> tuple[Path, Callable[[Path], object]]:
    """A sound folder, and what reads it."""
    if request.param == "target":
        folder = tmp_path / "target"
        shutil.copytree(tiny_qwen3_dir, folder)
        return folder, read_target
    return HEADS[request.param](tmp_path / "head"), read_draft


def attempt(read: Callable[[Path], object], folder: Path) -> bool:
    """Whether it was read; an error must be ours and one line."""
    try:
        read(folder)
        return True
    except DSparkError as error:
        assert "\n" not in error.message + error.hint and len(error.message) < 1500
        return False


def refused(read: Callable[[Path], object], folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert "\n" not in caught.value.message
    return caught.value.message


def header_of(path: Path) -> tuple[dict, bytes]:
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def put_header(path: Path, text: str, data: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(text.encode())) + text.encode() + data)


def test_truncated_and_flipped_weights(model):
    folder, read = model
    path = folder / "model.safetensors"
    sound, rng = path.read_bytes(), random.Random(5)
    length = 8 + struct.unpack("<Q", sound[:8])[0]
    for _ in range(40):
        path.write_bytes(sound[: rng.randrange(len(sound))])
        assert not attempt(read, folder)
    for _ in range(60):
        damaged = bytearray(sound)
        for _ in range(rng.choice([1, 1, 4, 30])):
            damaged[rng.randrange(length)] = rng.randrange(256)
        path.write_bytes(damaged)
        attempt(read, folder)
    path.write_bytes(sound)
    assert attempt(read, folder)


def test_odd_values_in_the_config(model):
    folder, read = model
    path = folder / "config.json"
    sound, rng = json.loads(path.read_text()), random.Random(7)
    places = [(key, None) for key in sound]
    places += [(k, inner) for k, v in sound.items() if isinstance(v, dict) for inner in v]
    for key, inner in places:
        for value in rng.sample(ODD_VALUES, 6):
            raw = json.loads(json.dumps(sound))
            if inner is None:
                raw[key] = value
            else:
                raw[key][inner] = value
            path.write_text(json.dumps(raw))
            attempt(read, folder)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "nul", '"text"', '{"a": NaN}', '{"a": Infinity}', "[" * 100_000),
        *('{"a": 1, "a": 2}', "\ud800", '{"architectures": 5}', '{"architectures": [{}]}'),
    ],
)
def test_config_that_is_none(model, text):
    folder, read = model
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(read, folder)


def test_header_of_ten_gigabytes(model):
    folder, read = model
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 10 << 30) + raw[8:])
    assert "model.safetensors" in refused(read, folder)


def test_absurd_shapes_wrong_types_and_tensors_that_come_twice(model):
    folder, read = model
    path = folder / "model.safetensors"
    header, data = header_of(path)
    header.pop("__metadata__", None)
    name = next(n for n in header if n.endswith("gate_proj.weight"))
    for wrong in (
        {"shape": [2**40, 2**40]},
        {"shape": [-1, 48]},
        {"shape": []},
        {"dtype": "I32"},
        {"dtype": "U8"},
        {"dtype": "PICKLE"},
        {"data_offsets": [0, 2**50]},
        {"data_offsets": [8, 0]},
        {"data_offsets": header[next(n for n in header if n != name)]["data_offsets"]},
    ):
        put_header(path, json.dumps(header | {name: header[name] | wrong}), data)
        refused(read, folder)
    put_header(path, json.dumps(header)[:-1] + f', "{name}": {json.dumps(header[name])}}}', data)
    refused(read, folder)


class Bomb:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("number", "kind", "way_out"),
    [
        (errno.EMFILE, CheckpointError, "ulimit -n"),
        (errno.EACCES, CheckpointError, "permissions"),
        (errno.ENOMEM, MemoryFullError, "Close other programs"),
    ],
    ids=["open files", "permissions", "memory"],
)
def test_what_the_system_refuses_is_no_reason_to_fetch_again(
    tmp_path, monkeypatch, number, kind, way_out
):
    folder, whole_open = writers.write_deepspec(tmp_path / "head"), Path.open

    def refuse(path: Path, *arguments, **options):
        if path.name == "model.safetensors":
            raise OSError(number, os.strerror(number), str(path))
        return whole_open(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(kind) as caught:
            read_draft(folder)
    assert caught.value.message.count("model.safetensors") == 1
    assert way_out in caught.value.hint and "again" not in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    assert attempt(read_draft, folder)


def test_memory_that_ends_halfway_through_a_file_is_no_damage(model, monkeypatch):
    folder, read = model
    whole, calls = torch.empty, [0]

    def full(*arguments, **options):
        calls[0] += 1
        if calls[0] == 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return whole(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("dspark.checkpoints.safetensors_dir.torch.empty", full)
        with pytest.raises(RuntimeError, match="can't allocate"):
            read(folder)
    assert attempt(read, folder)


def test_pickles_are_never_opened(model, tmp_path):
    folder, read = model
    bomb = pickle.dumps(Bomb(tmp_path / "executed"))
    (folder / "model.safetensors").write_bytes(bomb)
    refused(read, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(bomb)
    assert "pytorch_model.bin" in refused(read, folder)
    assert not (tmp_path / "executed").exists()


def test_code_beside_a_config_is_never_run(model, tmp_path):
    folder, read = model
    code = f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\nclass C: pass\n"
    (folder / "code.py").write_text(code)
    raw = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "code.C", "AutoModel": "code.C", "AutoModelForCausalLM": "code.C"}
    for kind in (raw.get("model_type"), "unheard-of"):
        (folder / "config.json").write_text(
            json.dumps(raw | {"auto_map": names, "model_type": kind})
        )
        attempt(read, folder)
    assert not (tmp_path / "executed").exists()


def test_code_that_a_tokenizer_names_is_never_run(tmp_path):
    (tmp_path / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n")
    for names in (["code.C", None], ["owner/other--code.C", None]):
        raw = {"tokenizer_class": "C", "auto_map": {"AutoTokenizer": names}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(raw))
        (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
        assert "tokenizer" in refused(TextCodec.from_directory, tmp_path)
    assert not (tmp_path / "executed").exists()


def test_an_index_stays_in_its_folder_and_tells_the_truth(model, tmp_path):
    folder, read = model
    shutil.copy(folder / "model.safetensors", tmp_path / "secret.safetensors")
    shard(folder)
    assert attempt(read, folder)
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    first, second = sorted(set(weight_map.values()))
    outside = ["../secret.safetensors", str(tmp_path / "secret.safetensors"), "..", "", "a\0b"]
    for name in [*outside, "model.safetensors.index.json", "gone.safetensors", 3, None, [first]]:
        index.write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, name)}))
        refused(read, folder)
    for raw in (
        {},
        {"weight_map": []},
        {"weight_map": {}},
        {"weight_map": weight_map | {"a": first}},
    ):
        index.write_text(json.dumps(raw))
        refused(read, folder)
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / first).rename(folder / "other")  # swapped shards
    (folder / second).rename(folder / first)
    (folder / "other").rename(folder / second)
    assert "which lacks it" in refused(read, folder)


def test_links_stay_in_the_folder_or_in_the_blobs_of_its_cache(model, tmp_path):
    folder, read = model
    secret = tmp_path / "secret.safetensors"
    shutil.move(folder / "model.safetensors", secret)
    (folder / "model.safetensors").symlink_to(secret)
    assert "outside" in refused(read, folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")  # a link to itself
    refused(read, folder)
    cached = tmp_path / "models--o--n" / "snapshots" / "main"
    blobs = tmp_path / "models--o--n" / "blobs"
    blobs.mkdir(parents=True)
    (folder / "model.safetensors").unlink()
    shutil.copytree(folder, cached)
    shutil.move(secret, blobs / "weights")
    (cached / "model.safetensors").symlink_to(Path("../../blobs/weights"))
    assert attempt(read, cached)


def test_pipes_and_folders_in_the_place_of_files(model):
    folder, read = model
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        refused(read, folder)
        (folder / name).unlink()
        (folder / name).mkdir()
        refused(read, folder)


@pytest.mark.parametrize("name", HEADS)
def test_odd_values_in_a_config_that_is_looked_at_before_the_weights(name, tmp_path):
    raw = json.loads((HEADS[name](tmp_path) / "config.json").read_text())
    for key in (*raw, "text_config", "layer_types", "sliding_window"):
        for value in ODD_VALUES:
            odd = raw | {key: value}
            assert isinstance(cache_values(odd), int)
            try:
                check_published(odd, "owner/name")
            except CheckpointError as error:
                assert "\n" not in error.message + error.hint


def test_a_tensor_of_the_wrong_kind_is_named(tmp_path):
    folder = writers.write_deepspec(tmp_path / "head")
    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"] = tensors["norm.weight"].long()
    writers.write_safetensors(folder / "model.safetensors", tensors)
    assert "norm.weight is I64" in refused(read_draft, folder)


def test_memory_stays_bounded(tmp_path, tiny_qwen3_dir):
    """Half a gigabyte above what the imports take must do for every absurd figure."""
    head, target = writers.write_specforge(tmp_path / "head"), tmp_path / "target"
    shutil.copytree(tiny_qwen3_dir, target)
    result = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(head), str(target)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


BOUNDED = """
import json, resource, struct, sys
from pathlib import Path
import torch, transformers
from transformers import Qwen3Config
from dspark.checkpoints.heads import read_draft
from dspark.errors import CheckpointError
from dspark.targets.load import load_target

head, target = map(Path, sys.argv[1:])
cpu = {"device": torch.device("cpu"), "dtype": torch.float32, "tap_layers": (), "prepack": False}
readers = {head: read_draft, target: lambda folder: load_target(folder, **cpu)}
readers[target](target)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (512 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

def refused(folder):
    try:
        readers[folder](folder)
    except CheckpointError:
        return
    raise SystemExit(f"{folder} was read")

for folder in readers:
    config, weights = folder / "config.json", folder / "model.safetensors"
    sound, raw = config.read_text(), weights.read_bytes()
    if folder == target:
        for key in ("num_hidden_layers", "vocab_size", "head_dim", "intermediate_size"):
            config.write_text(json.dumps(json.loads(sound) | {key: 10**9}))
            refused(folder)
        config.write_text(sound)
    weights.write_bytes(struct.pack("<Q", 10 << 30) + raw[8:])
    refused(folder)
    text = '{"a": {"dtype": "F32", "shape": [1099511627776], "data_offsets": [0, 4398046511104]}}'
    weights.write_bytes(struct.pack("<Q", len(text)) + text.encode())
    refused(folder)
    weights.write_bytes(raw)
"""
