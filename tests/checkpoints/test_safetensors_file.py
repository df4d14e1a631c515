"""Headers of safetensors files: whatever the library refuses is refused, and what it reads is read
alike."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from dspark.checkpoints.safetensors_dir import read_file
from dspark.checkpoints.safetensors_file import DTYPE_BITS, SafetensorsFile
from dspark.errors import CheckpointError

NAME = "model.safetensors"
SOUND: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "none": {"dtype": "F16", "shape": [0, 3], "data_offsets": [24, 24]},
    "b": {"dtype": "U8", "shape": [5], "data_offsets": [24, 29]},
    "one": {"dtype": "BF16", "shape": [], "data_offsets": [29, 31]},
}
VALUES = [
    *(None, True, -1, 0, 1, 2.0, 2**40, 2**64, 10**30, "", "F32", "F64", "F4", "f32", "x"),
    *([], [0], [2, 3], [3, 2], [6], [24], [0, 24], [24, 0], [0, 23], [1, 24], [0.0, 24], {}),
]


def write(folder: Path, header: object, num_bytes: int = 31, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / NAME
    path.write_bytes(struct.pack("<Q", length or len(text)) + text + bytes(num_bytes))
    return path


def library_takes(path: Path) -> bool:
    try:
        with safe_open(path, framework="np"):
            return True
    except (SafetensorError, OSError):
        return False


def is_taken(path: Path) -> bool:
    try:
        SafetensorsFile(path)
        return True
    except CheckpointError as error:
        assert str(path) in error.message and "\n" not in error.message
        return False


def changed(rng: random.Random) -> dict[str, Any]:
    """The sound header with a few values replaced, dropped or added."""
    header = json.loads(json.dumps(SOUND))
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice([*header])
        entry = header[name]
        key = rng.choice([*entry]) if entry and isinstance(entry, dict) else None
        action = rng.randrange(5)
        if action == 0 or key is None:
            header[name] = rng.choice(VALUES)
        elif action == 1:
            del entry[key]
        elif action == 2:
            header["another"] = dict(entry)
        elif action == 3 and isinstance(entry[key], list) and entry[key]:
            entry[key][rng.randrange(len(entry[key]))] = rng.choice(VALUES)
        else:
            entry[key] = rng.choice(VALUES)
    return header


def test_a_sound_file_is_read_as_by_the_library(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND)
    assert library_takes(path) and is_taken(path)
    assert [*SafetensorsFile(path).entries] == ["a", "none", "b", "one"]


def test_what_the_library_refuses_is_refused(tmp_path: Path) -> None:
    rng, refused, taken = random.Random(3), 0, 0
    for _ in range(300):
        path = write(tmp_path, changed(rng), rng.choice([31, 31, 31, 30, 32, 55]))
        if library_takes(path):
            taken += is_taken(path)
        else:
            refused += 1
            assert not is_taken(path), path.read_bytes()[8:-31]
    assert refused > 150 and taken > 5


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"[]", b"{", b"null", b'"a"', b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"{}x"),
        json.dumps(SOUND).encode("utf-16"),
        b'{"\\ud800": {"dtype": "U8", "shape": [31], "data_offsets": [0, 31]}}',
        b'{"a": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 31]}}',
    ],
)
def test_texts_that_are_no_header(tmp_path: Path, text: bytes) -> None:
    path = write(tmp_path, text)
    assert not library_takes(path) and not is_taken(path)


def test_a_name_that_occurs_twice_is_refused_though_the_library_takes_it(tmp_path: Path) -> None:
    entry = '{"dtype": "U8", "shape": [31], "data_offsets": [0, 31]}'
    path = write(tmp_path, f'{{"a": {entry}, "a": {entry}}}'.encode())
    assert library_takes(path) and not is_taken(path)


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_type_of_number_has_the_size_and_bits_of_the_librarys(
    tmp_path: Path, dtype: str
) -> None:
    size = 3 * 8 * DTYPE_BITS[dtype] // 8
    header = {"a": {"dtype": dtype, "shape": [3, 8], "data_offsets": [0, size]}}
    path = write(tmp_path, header, size)
    assert library_takes(path) and is_taken(path)
    if dtype.startswith("F6_"):  # which neither torch nor we have
        with pytest.raises(CheckpointError, match=dtype):
            read_file(tmp_path, NAME)
        return
    ours, theirs = read_file(tmp_path, NAME)["a"], load_file(path)["a"]
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


def test_a_file_that_shrinks_after_it_was_opened_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND)
    file = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:-8])
    entry = file.entries["b"]
    with pytest.raises(CheckpointError, match="truncated at b"):
        file.read_into(entry, memoryview(bytearray(entry.num_bytes)))
