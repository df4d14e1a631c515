"""How long a grafting will take, by a clock of our own: what is told follows by counting."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dspark.config import GraftConfig, RuntimeConfig
from dspark.errors import InputError
from dspark.graft import estimate as estimated
from dspark.graft.data.corpus import CorpusProgress
from dspark.graft.data.prompt_sources import PromptSource
from dspark.graft.estimate import Span, estimate
from dspark.graft.job import GraftJob
from dspark.graft.plan import draw_plan
from dspark.graft.run import GraftRun
from dspark.hub.catalog.pairs import PairFiles
from dspark_cli.views.plan import plan_lines


@pytest.fixture
def job(tiny_chat_dir: Path, tmp_path: Path, small_config: GraftConfig) -> GraftJob:
    """Four prompts of one character and one of ninety."""
    prompts = [*"abcd", "x" * 90]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return GraftJob(
        base=PairFiles("tiny", tiny_chat_dir, None),
        source=PromptSource((file,)),
        data=tmp_path / "answers.jsonl",
        out=tmp_path / "head",
        config=replace(small_config, mask_token_id=200, max_answer_tokens=12, length=120),
        runtime=RuntimeConfig("cpu", "float32"),
    )


def test_a_busy_moment_does_not_change_what_is_told() -> None:
    assert Span.of([1.0, 1.0, 60.0, 1.0, 2.0]) == Span(1.0, 1.0, 2.0)
    assert Span.of([3.0]) == Span(3.0, 3.0, 3.0)
    assert Span.of([1.0, 2.0, 3.0]).times(10.0, 5.0) == Span(25.0, 20.0, 30.0)


def test_time_is_that_of_rounds_and_steps_alone(
    job: GraftJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the clock takes a second, loading an hour and the warm-up of a step another."""
    clock = itertools.count()
    late = [0.0]
    monkeypatch.setattr(
        estimated, "time", SimpleNamespace(perf_counter=lambda: next(clock) + late[0])
    )
    load = estimated.open_corpus_session

    def slow_load(*arguments: Any) -> Any:
        late[0] += 3600.0
        return load(*arguments)

    monkeypatch.setattr(estimated, "open_corpus_session", slow_load)
    sizes = timed_steps(monkeypatch, 3600.0, 0.5, *(0.1 * n for n in range(1, 9)))
    duration = estimate(job)
    # four prompts in a second, then rounds of a second for four tokens; 12 tokens an answer
    assert duration.answers.middle == 1.0 + 4 * 12 * 1.0 / 4
    assert duration.answers.low == duration.answers.high == duration.answers.middle
    # 12 s, three looks at the clock a step: the prompts, and three rounds with the warm-up
    assert duration.measured_rounds == 2
    # one sequence takes half a second, so that eight steps of three fit
    assert sizes == [1, 1, *[3] * 8]
    assert duration.measured_steps == 8
    assert duration.steps.middle == pytest.approx(job.config.steps * 0.45)
    assert duration.steps.low == pytest.approx(job.config.steps * 0.275)


def test_large_steps_are_measured_by_the_sequence(
    job: GraftJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = timed_steps(monkeypatch, 9.0, 6.0, 6.0, 5.0, 7.0)
    duration = estimate(job)
    assert sizes == [1, 1, 1, 1, 1]  # the budget of 12 s is spent
    assert duration.steps.middle == pytest.approx(job.config.steps * 3 * 6.0)


def timed_steps(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> list[int]:
    """Each step takes so long; how many sequences each had."""
    left, sizes, step = iter(seconds), list[int](), estimated.Trainer.step

    def timed(trainer: Any) -> Any:
        sizes.append(trainer.config.batch_size)
        return replace(step(trainer), seconds=next(left))

    monkeypatch.setattr(estimated.Trainer, "step", timed)
    return sizes


def test_prompts_that_are_too_long_are_counted(
    job: GraftJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = draw_plan(job)
    assert (plan.num_answers, plan.num_missing, plan.num_too_long) == (4, 4, 1)
    assert any(
        line == "answers: 4, 4 of them still to be written; 1 prompt is longer than --length "
        "leaves room for"
        for line in plan_lines(plan)
    )
    told = ["1 prompt is left out: longer than 60 tokens, half of --length"]
    assert notes_until(job, "writing answers") == told
    lines = [{"prompt": prompt, "answer": "yes"} for prompt in "abcd"]
    job.data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.delattr("dspark.graft.run.open_corpus_session")  # the rest is there: no model
    assert told[0] in notes_until(job, None)


def notes_until(job: GraftJob, stage: str | None) -> list[str]:
    """What a run tells until a stage, or until it has read all answers."""
    run, notes = GraftRun(job), list[str]()
    for event in run.events():
        if isinstance(event, CorpusProgress):
            notes += event.notes
            if event.stage in (stage, "reading the target's bigrams"):
                run.stop()
    return notes


def test_prompts_that_are_all_too_long_are_refused_before_anything_is_loaded(
    job: GraftJob,
) -> None:
    short = replace(job, config=replace(job.config, length=8))
    with pytest.raises(InputError, match="all 5 prompts are longer than --length 8") as caught:
        draw_plan(short)
    shortest = int(caught.value.message.rpartition(" ")[2])
    assert str(2 * shortest) in caught.value.hint
    assert draw_plan(replace(job, config=replace(job.config, length=2 * shortest))).num_missing == 4
    with pytest.raises(InputError, match="all 5 prompts are longer than --length 8"):
        list(GraftRun(short).events())


def test_answers_to_other_prompts_do_not_stand_for_these(job: GraftJob) -> None:
    lines = [{"prompt": f"old {n}", "answer": "yes"} for n in range(3)]
    job.data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = draw_plan(job)
    assert (plan.num_answers, plan.num_missing) == (7, 4)
