"""A whole grafting: prompts, answers, training, a head on disk that the engine loads."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from dspark.checkpoints.deepspec import read_head
from dspark.config import GraftConfig
from dspark.drafters.dspark import DSparkDrafter
from dspark.engine.session import Session, open_session
from dspark.errors import InputError
from dspark.events import Finished
from dspark.graft.data.answer_file import AnswerFile, split
from dspark.graft.data.corpus import CorpusProgress
from dspark.graft.data.prompt_sources import PromptSource
from dspark.graft.job import GraftEvent, GraftJob, Prepared, Stopped, Validated
from dspark.graft.judge.acceptance import Evaluation
from dspark.graft.judge.calibrate import Calibrated
from dspark.graft.run import GraftRun
from dspark.graft.train.distributed import Shared, SingleProcess
from dspark.graft.train.trainer import StepReport
from dspark.hub.catalog.pairs import PairFiles
from dspark.progress import follow

MASK = 200  # a byte that the prompts below do not hold


@pytest.fixture
def job(tiny_chat_dir: Path, tmp_path: Path, small_config: GraftConfig) -> GraftJob:
    prompts = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"Say {n}"}) for n in range(10)]
    prompts.write_text("\n".join([*lines, "broken"]))
    return GraftJob(
        base=PairFiles("tiny", tiny_chat_dir, None),
        source=PromptSource((prompts,)),
        data=tmp_path / "answers.jsonl",
        out=tmp_path / "head",
        config=replace(small_config, mask_token_id=MASK, max_answer_tokens=12, length=120),
        full_head=False,
    )


def _kinds(events: list[GraftEvent]) -> list[type]:
    return [type(event) for event in events if not isinstance(event, CorpusProgress)]


def _session(job: GraftJob) -> Session:
    session = follow(open_session(PairFiles("tiny", job.base.target, job.out)))
    return session


def test_from_prompts_to_a_head_that_the_engine_decodes_with(job: GraftJob) -> None:
    events = list(GraftRun(job).events())
    notes = [n for e in events if isinstance(e, CorpusProgress) for n in e.notes]
    assert len(notes) == 1 and notes[0].startswith("1 line without a prompt skipped")
    steps = [StepReport, StepReport, Validated]
    assert _kinds(events) == [Prepared, *steps * 3, Evaluation, Calibrated]
    config, tensors = read_head(job.out)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert "embed_tokens.weight" not in tensors and "lm_head.weight" not in tensors
    assert config.target_layer_ids == (0, 1) and config.mask_token_id == MASK
    figures = json.loads((job.out / "config.json").read_text())["graft"]
    evaluation, calibrated = (e for e in events[-4:] if not isinstance(e, CorpusProgress))
    assert isinstance(evaluation, Evaluation) and isinstance(calibrated, Calibrated)
    assert config.sampled_calibration == calibrated.sampled.calibration
    assert config.greedy_calibration == calibrated.greedy.calibration
    assert figures["calibration"] == calibrated.figures()
    assert figures["tau_greedy"] == round(evaluation.tau, 4)
    assert (figures["seed"], figures["steps"], figures["answers"]) == (5, 6, 7)

    session = _session(job)
    assert isinstance(session.engine.drafter, DSparkDrafter)
    assert session.engine.drafter.config == config
    prompt = session.encode_chat([{"role": "user", "content": "Say more"}])
    drafted = [e for e in session.generate(prompt) if isinstance(e, Finished)]
    plain = [e for e in session.generate(prompt, plain=True) if isinstance(e, Finished)]
    assert drafted[0].token_ids == plain[0].token_ids


def test_a_stopped_run_goes_on_to_the_same_head(job: GraftJob, tmp_path: Path) -> None:
    list(GraftRun(job).events())
    other = replace(job, out=tmp_path / "stopped")
    run = GraftRun(other)
    kinds = []
    for event in run.events():
        kinds.append(type(event))
        if isinstance(event, StepReport) and event.step == 3:
            run.stop()
    assert kinds[-1] is Stopped
    events = list(GraftRun(other).events())
    assert _kinds(events)[:2] == [Prepared, StepReport]
    assert next(e.first_step for e in events if isinstance(e, Prepared)) == 3
    for name in ("model.safetensors", "config.json"):
        assert (other.out / name).read_bytes() == (job.out / name).read_bytes()
    lines = other.metrics_path.read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert [s["step"] for s in steps if s["kind"] == "step"] == [1, 2, 3, 4, 5, 6]


def test_held_out_prompts_are_not_trained_on(job: GraftJob) -> None:
    list(GraftRun(job).events())
    parts = split(AnswerFile(job.data).read(), 3)
    assert len(parts.train) == 7
    assert not {a.prompt for a in parts.train} & {a.prompt for a in parts.held_out}


def test_answers_that_are_there_are_not_written_again(job: GraftJob) -> None:
    list(GraftRun(job).events())
    before = job.data.read_bytes()
    again = replace(job, out=job.out.with_name("again"))
    list(GraftRun(again).events())
    assert job.data.read_bytes() == before


def test_the_target_writes_prompts_itself(job: GraftJob) -> None:
    source = PromptSource(num_self_written=12)
    own = replace(job, source=source, config=replace(job.config, eval_prompts=1, steps=1))
    try:
        list(GraftRun(own).events())
    except InputError as error:  # a random target may never end a turn
        words = ("too few", "no prompt", "longer than --length")
        assert any(each in error.message for each in words)
    prompts = own.data.with_suffix(".prompts.jsonl")
    assert prompts.exists()
    texts = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    assert len(texts) == len(set(texts))


def test_other_settings_do_not_go_on_from_an_old_state(job: GraftJob) -> None:
    list(GraftRun(job).events())
    changed = replace(job, config=replace(job.config, learning_rate=1e-4))
    with pytest.raises(InputError, match="other settings"):
        list(GraftRun(changed).events())
    fresh = list(GraftRun(replace(changed, resume=False)).events())
    assert next(e.first_step for e in fresh if isinstance(e, Prepared)) == 0


def test_a_head_is_gone_on_from(job: GraftJob, tmp_path: Path) -> None:
    list(GraftRun(job).events())
    onward = replace(
        job,
        out=tmp_path / "onward",
        init_from=job.out,
        config=replace(job.config, steps=1, learning_rate=0.0),
    )
    list(GraftRun(onward).events())
    old, new = read_head(job.out)[1], read_head(onward.out)[1]
    assert all(torch.equal(old[name], new[name]) for name in old)


class Rank(SingleProcess):
    """One of two processes, whose collectives are only written down; what was agreed is given."""

    count = 2  # type: ignore[assignment]

    def __init__(self, index: int, agreed: Sequence[bool] = ()) -> None:
        self.index = index  # type: ignore[misc]
        self.is_first = index == 0  # type: ignore[misc]
        self.calls: list[str] = []
        self.agreed = list(agreed)
        self._answers = iter(agreed)

    def share(self, objective: nn.Module, optimizer: Optimizer) -> Shared:
        self.calls.append("share")
        return super().share(objective, optimizer)

    def total(self, sums: torch.Tensor) -> torch.Tensor:
        self.calls.append("total")
        return sums

    def whole(self, state: Any) -> Any:
        self.calls.append("whole")
        return state

    def agree(self, is_asked: bool) -> bool:
        self.calls.append("agree")
        if self.is_first:
            self.agreed.append(is_asked)
            return is_asked
        return next(self._answers)

    def leave(self) -> None:
        self.calls.append("leave")


@pytest.mark.parametrize(
    ("resumes", "stop_at"), [(False, None), (False, 0), (False, 3), (True, None)]
)
def test_every_process_calls_the_same_collectives(
    job: GraftJob, monkeypatch: pytest.MonkeyPatch, stop_at: int | None, resumes: bool
) -> None:
    """Else one would wait for the other for ever."""
    job = replace(job, config=replace(job.config, batch_size=2, init="random"))
    if resumes:
        _stopped_run(job, Rank(0), monkeypatch, stop_at=3)
    state = job.state_path.read_bytes() if resumes else None
    first = Rank(0)
    events = _stopped_run(job, first, monkeypatch, stop_at)
    assert _kinds(events)[-1] is (Calibrated if stop_at is None else Stopped)
    if state is None:
        shutil.rmtree(job.out, ignore_errors=True)
    else:
        job.state_path.write_bytes(state)
    files = {path: path.read_bytes() for path in job.out.rglob("*") if path.is_file()}
    second = Rank(1, first.agreed)
    told = _stopped_run(job, second, monkeypatch, None)
    assert second.calls == first.calls
    assert _kinds(told) == ([] if stop_at is None else [Stopped])
    assert files == {path: path.read_bytes() for path in job.out.rglob("*") if path.is_file()}


def _stopped_run(
    job: GraftJob, rank: Rank, monkeypatch: pytest.MonkeyPatch, stop_at: int | None
) -> list[GraftEvent]:
    monkeypatch.setattr("dspark.graft.run.join_ranks", lambda device: rank)
    run, events = GraftRun(job), []
    if stop_at == 0:
        run.stop()
    for event in run.events():
        events.append(event)
        if isinstance(event, StepReport) and event.step == stop_at:
            run.stop()
    return events
