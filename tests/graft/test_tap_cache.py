"""Taps on disk: the same head, no stale or torn values, and a full disk ends no training."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dspark.config import GraftConfig
from dspark.errors import InputError, StorageError
from dspark.graft.data.answer_file import Answer, AnswerFile
from dspark.graft.data.corpus import CorpusProgress
from dspark.graft.data.prompt_sources import PromptSource
from dspark.graft.job import GraftEvent, GraftJob, Validated
from dspark.graft.plan import draw_plan
from dspark.graft.run import GraftRun
from dspark.graft.target import frozen_target
from dspark.graft.target.frozen_target import FrozenTarget, load_frozen
from dspark.graft.target.tap_cache import TapCache
from dspark.graft.train.trainer import StepReport
from dspark.hub.catalog.pairs import PairFiles


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def job(
    tiny_llama_dir: Path, tmp_path: Path, small_config: GraftConfig, answers: list[Answer]
) -> GraftJob:
    data = tmp_path / "answers.jsonl"
    list(AnswerFile(data).append(answers))
    return GraftJob(
        base=PairFiles("tiny", tiny_llama_dir, None),
        source=PromptSource(()),
        data=data,
        out=tmp_path / "plain",
        config=replace(small_config, tap_memory_gib=0.0, init="random", steps=7),
    )


def _cached(job: GraftJob, name: str = "cached") -> GraftJob:
    return replace(job, out=job.out.parent / name, tap_cache=job.out.parent / "taps")


def _train(job: GraftJob) -> list[GraftEvent]:
    """Up to the last head: what is measured on it afterwards costs most of a run's time."""
    return list(_events(job))


def _events(job: GraftJob) -> Iterator[GraftEvent]:
    for event in GraftRun(job).events():
        yield event
        if isinstance(event, Validated) and event.report.step == job.config.steps:
            return


def _entries(job: GraftJob) -> list[Path]:
    assert job.tap_cache is not None
    return sorted(job.tap_cache.rglob("*.safetensors"))


def _head_bytes(job: GraftJob) -> bytes:
    return (job.out / "model.safetensors").read_bytes()


def _notes(events: list[GraftEvent]) -> str:
    return "\n".join(n for e in events if isinstance(e, CorpusProgress) for n in e.notes)


@pytest.fixture
def without_target(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on no sequence may go through the target."""

    def forbid() -> None:
        def refuse(*_: Any) -> None:
            raise AssertionError("the target was run again")

        monkeypatch.setattr(FrozenTarget, "_forward", refuse)

    return forbid


def test_the_head_is_the_same_with_and_without(
    job: GraftJob, without_target: Callable[[], None]
) -> None:
    _train(job)
    first = _cached(job)
    assert "0.00 GiB still to be written" in _notes(_train(first))
    assert _head_bytes(first) == _head_bytes(job)
    assert len(_entries(first)) == 24  # every answer, held out or not
    without_target()
    second = _cached(job, "again")
    _train(second)
    assert _head_bytes(second) == _head_bytes(job)


def test_the_size_is_that_of_the_files(
    job: GraftJob, target: FrozenTarget, answers: list[Answer]
) -> None:
    _train(_cached(job))
    tokens = sum(min(len(answer.token_ids), job.config.length) for answer in answers)
    values = sum(path.stat().st_size for path in _entries(_cached(job)))
    needed = tokens * (2 + 1) * target.config.hidden_size * 2  # two taps and the final state
    headers = 24 * 256
    assert needed < values < needed + headers


def test_another_targets_taps_are_refused(job: GraftJob) -> None:
    cached = _cached(job)
    _train(cached)
    assert cached.tap_cache is not None
    before = {path: path.read_bytes() for path in _entries(cached)}
    other = shutil.copytree(job.base.target, job.out.parent / "other")
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1  # one bit of one weight
    (other / "model.safetensors").write_bytes(weights)
    stale = [
        replace(cached, base=PairFiles("other", other, None)),
        replace(cached, config=replace(cached.config, taps=(1,))),
    ]
    for stale_job in stale:
        with pytest.raises(InputError, match="taps of another target") as caught:
            _train(replace(stale_job, out=job.out.parent / "new"))
        assert "--tap-cache" in caught.value.hint
    assert {path: path.read_bytes() for path in _entries(cached)} == before


def test_a_torn_entry_is_computed_again(job: GraftJob) -> None:
    _train(job)
    cached = _cached(job)
    _train(cached)
    torn, emptied = _entries(cached)[:2]
    torn.write_bytes(torn.read_bytes()[:-100])
    emptied.write_bytes(b"")
    again = _cached(job, "again")
    _train(again)
    assert _head_bytes(again) == _head_bytes(job)


def test_a_cache_that_does_not_fit_is_refused_before_the_first_write(
    job: GraftJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**30, 2**30 - 1000, 1000))
    cached = _cached(job)
    with pytest.raises(StorageError, match=r"tap cache needs .* more") as caught:
        _train(cached)
    assert "larger disk" in caught.value.hint
    assert not _entries(cached)
    assert not (cached.out / "model.safetensors").exists()


def test_a_disk_full_in_the_middle_ends_the_cache_and_not_the_training(
    job: GraftJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_target, "TOKENS_AT_ONCE", 60)  # some texts share a pass
    _train(job)
    cached = _cached(job)
    events: list[GraftEvent] = []
    for event in _events(cached):
        events.append(event)
        if isinstance(event, StepReport) and event.step == 1:
            kept = _entries(cached)
            monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**30, 2**30, 0))
    assert _notes(events).count("the disk is full") == 1
    assert _entries(cached) == kept and job.config.batch_size <= len(kept) < 24
    assert _head_bytes(cached) == _head_bytes(job)


def test_a_write_that_fails_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TapCache(tmp_path / "taps", "mine")
    cache.write((1, 2), {"taps": torch.ones(2, 3), "hidden": torch.ones(2, 1)})

    def full(_tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dspark.graft.target.tap_cache.save_file", full)
    cache.write((3, 4), {"taps": torch.ones(2, 3), "hidden": torch.ones(2, 1)})
    assert cache.is_full and cache.read((3, 4)) is None and cache.read((1, 2)) is not None
    files = [path.name for path in _files(tmp_path)]
    assert len(files) == 2 and not [name for name in files if name.endswith(".tmp")]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def test_what_a_killed_run_left_is_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "taps"
    TapCache(folder, "mine")
    (folder / f".{os.environ.get('RANK', '0')}.tmp").write_bytes(b"half an entry")
    cache = TapCache(folder, "mine")
    cache.write((1, 2), {"taps": torch.full((2, 3), 7.0)})
    found = cache.read((1, 2))
    assert found is not None and torch.equal(found["taps"], torch.full((2, 3), 7.0))
    assert not list(folder.glob(".*.tmp"))


def test_taps_follow_their_number_format(tiny_llama_dir: Path, tmp_path: Path) -> None:
    def opened(dtype: torch.dtype) -> None:
        target = load_frozen(tiny_llama_dir, device=torch.device("cpu"), dtype=dtype)
        target.tap((0, 1))
        target.keep_on_disk(tmp_path / "taps", tiny_llama_dir, [])

    opened(torch.float32)
    opened(torch.float32)
    with pytest.raises(InputError, match="another number format"):
        opened(torch.bfloat16)


def test_the_plan_tells_the_size_and_what_is_free(
    job: GraftJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert draw_plan(job).disk.taps == 0
    plan = draw_plan(_cached(job))
    assert not job.out.parent.joinpath("taps").exists()
    _train(_cached(job))
    values = sum(path.stat().st_size for path in _entries(_cached(job)))
    assert plan.disk.taps < values < plan.disk.taps + 24 * 256
    assert next(i for i in plan.items if i.name == "tap cache").reason.endswith("GiB free there")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**30, 2**30, 0))
    plan = draw_plan(_cached(job))
    assert "only 0.00 GiB free" in {item.name: item.reason for item in plan.items}["tap cache"]
