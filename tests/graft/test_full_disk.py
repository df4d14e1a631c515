"""Full disk, full memory, impossible taps: one line each, and what was computed stays."""

import errno
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.checkpoints.deepspec import read_head
from dspark.config import GraftConfig
from dspark.errors import DSparkError, InputError, MemoryFullError, StorageError
from dspark.graft.data.answer_file import Answer, AnswerFile
from dspark.graft.data.corpus import CorpusProgress
from dspark.graft.data.prompt_sources import PromptSource
from dspark.graft.head.shape import draft_config
from dspark.graft.job import GraftEvent, GraftJob, Prepared
from dspark.graft.run import GraftRun
from dspark.graft.target.frozen_target import FrozenTarget
from dspark.graft.train import checkpoint
from dspark.graft.train.out_of_memory import naming_what_fits
from dspark.graft.train.trainer import StepReport, Trainer
from dspark.hub.catalog.pairs import PairFiles
from dspark.targets.dense import DenseTarget

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
CPU_FULL = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")


@contextmanager
def _disk_that_ends_after(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond that; the writes of torch and safetensors meet it as Python's do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _is_one_line(error: DSparkError) -> bool:
    return "\n" not in error.message + error.hint and bool(error.hint)


@pytest.fixture
def job(tiny_chat_dir: Path, tmp_path: Path, small_config: GraftConfig) -> GraftJob:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {n}"}) + "\n" for n in range(10)))
    return GraftJob(
        base=PairFiles("tiny", tiny_chat_dir, None),
        source=PromptSource((prompts,)),
        data=tmp_path / "answers.jsonl",
        out=tmp_path / "head",
        config=replace(small_config, mask_token_id=200, max_answer_tokens=12, length=120),
    )


def test_a_disk_full_while_saving_leaves_the_earlier_state(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    path, trainer = tmp_path / "training" / "checkpoint.pt", make_trainer()
    trainer.step()
    checkpoint.save(path, trainer, "run")
    trainer.step()
    with _disk_that_ends_after(20_000), pytest.raises(StorageError) as caught:
        checkpoint.save(path, trainer, "run")
    assert _is_one_line(caught.value) and "Free some space" in caught.value.hint
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]
    again = make_trainer()
    checkpoint.load(path, again, "run")
    assert again.step_index == 1


@pytest.mark.parametrize("name", ["torch.save", "dspark.checkpoints.deepspec.save_file"])
def test_a_disk_full_while_training_goes_on_to_the_same_head(
    job: GraftJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    list(GraftRun(job).events())
    other = replace(job, out=tmp_path / "full")
    with monkeypatch.context() as patch, pytest.raises(StorageError) as caught:
        for event in GraftRun(other).events():
            if isinstance(event, StepReport) and event.step == 3:
                patch.setattr(name, _half_written)
    assert _is_one_line(caught.value) and "No space left" in caught.value.message
    assert read_head(other.out)[0].block_size == job.config.block_size
    events = list(GraftRun(other).events())
    assert next(e.first_step for e in events if isinstance(e, Prepared)) == 2
    written = (other.out / "model.safetensors").read_bytes()
    assert written == (job.out / "model.safetensors").read_bytes()


def _half_written(_what: Any, path: str | Path, **_: Any) -> None:
    Path(path).write_bytes(b"half")
    raise NO_SPACE


def test_a_disk_full_while_answering_keeps_the_answers(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers.jsonl")
    answers = [Answer((1, 2, n), (3, 4), f"prompt {n}", "answer") for n in range(20)]
    written = []
    with _disk_that_ends_after(1000), pytest.raises(StorageError) as caught:
        written.extend(file.append(answers))
    assert _is_one_line(caught.value)
    kept = file.read()
    assert 5 < len(kept) < 20 and kept == answers[: len(kept)]
    list(file.append(answers[len(kept) :]))
    assert file.read() == answers


@pytest.mark.parametrize("error", [CPU_FULL, torch.OutOfMemoryError("CUDA out of memory.\nmore")])
def test_full_memory_names_the_setting_that_fits(
    job: GraftJob, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def full(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch, pytest.raises(MemoryFullError) as caught:
        for event in GraftRun(job).events():
            if isinstance(event, StepReport) and event.step == 3:
                patch.setattr("dspark.graft.train.objective.distribution_loss", full)
    assert _is_one_line(caught.value)
    assert "with --accumulate 2; it resumes" in caught.value.hint
    answers = job.data.read_bytes()
    smaller = replace(job, config=replace(job.config, accumulate=2))
    assert _first_step(list(GraftRun(smaller).events())) == 2
    assert job.data.read_bytes() == answers


def _first_step(events: list[GraftEvent]) -> int:
    return next(event.first_step for event in events if isinstance(event, Prepared))


@pytest.mark.parametrize(
    ("sizes", "setting"),
    [
        ((8, 16, 4.0), "with --accumulate 2; it resumes"),
        ((8, 256, 4.0), "with --accumulate 8; it resumes"),  # fewer parts hold as many blocks
        ((1, 1024, 4.0), "with --anchors 256;"),
        ((1, 64, 4.0), "with --anchors 32;"),
        ((1, 1, 4.0), "with --tap-memory 2; it resumes"),
        ((1, 1, 0.3), "with --tap-memory 0; it resumes"),
        ((1, 1, 0.0), "smaller --length"),
    ],
)
def test_settings_are_halved_in_their_order(
    tmp_path: Path, sizes: tuple[int, int, float], setting: str
) -> None:
    config = GraftConfig(batch_size=sizes[0], anchors=sizes[1], tap_memory_gib=sizes[2])
    with pytest.raises(MemoryFullError) as caught, naming_what_fits(config, tmp_path / "none"):
        raise CPU_FULL
    assert setting in caught.value.hint


def test_less_memory_for_taps_goes_on_from_the_checkpoint(job: GraftJob) -> None:
    run = GraftRun(job)
    for event in run.events():
        if isinstance(event, StepReport) and event.step == 2:
            run.stop()
    less = replace(job, config=replace(job.config, tap_memory_gib=0.0))
    assert _first_step(list(GraftRun(less).events())) == 2


def test_other_errors_of_a_step_stay_what_they_are(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="shape"),
        naming_what_fits(GraftConfig(), tmp_path),
    ):
        raise RuntimeError("a shape that does not fit")


def test_the_last_layer_is_never_a_tap(target: FrozenTarget, small_config: GraftConfig) -> None:
    with pytest.raises(InputError, match=r"taps \[0, 2\] .* 3 layers") as caught:
        draft_config(target.config, replace(small_config, taps=(0, 2)), 95)
    assert _is_one_line(caught.value) and "to 1; the last layer" in caught.value.hint


def test_full_memory_while_answering_goes_on_with_fewer_at_once(
    job: GraftJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(job, data=job.data.with_name("whole.jsonl"))
    _grow(whole)
    verify = DenseTarget.verify

    def full(self: DenseTarget, slots: list[Any], blocks: list[Any]) -> Any:
        if len(slots) > 2:
            raise CPU_FULL
        return verify(self, slots, blocks)

    monkeypatch.setattr(DenseTarget, "verify", full)
    with pytest.raises(MemoryFullError, match="writing 4 answers at once") as caught:
        _grow(replace(job, config=replace(job.config, answers_at_once=4)))
    assert _is_one_line(caught.value) and "--answers-at-once 2 to resume" in caught.value.hint
    _grow(replace(job, config=replace(job.config, answers_at_once=2)))
    assert job.data.read_bytes() == whole.data.read_bytes()


def _grow(job: GraftJob) -> None:
    """All answers, and no training."""
    run = GraftRun(job)
    for event in run.events():
        if isinstance(event, CorpusProgress) and event.done == 10:
            run.stop()
