"""Is the head worth using: what is measured, what is said of it, what is kept. About 15 s."""

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from dspark.bench.config import BenchConfig
from dspark.bench.report import ArmFigures, BenchReport, CategoryFigures, Figure
from dspark.checkpoints.heads import SHARED_WITH_TARGET
from dspark.config import GraftConfig
from dspark.engine import session
from dspark.graft.data.answer_file import Answer, AnswerFile, split
from dspark.graft.data.corpus import CorpusProgress
from dspark.graft.data.prompt_sources import PromptSource
from dspark.graft.job import GraftEvent, GraftJob
from dspark.graft.judge import judge
from dspark.graft.judge.acceptance import evaluate
from dspark.graft.judge.open_target import OpenTarget
from dspark.graft.judge.speedup import (
    MEASURED,
    WORTH_USING,
    Speedup,
    choose_prompts,
    judge_speed,
    read_measured,
)
from dspark.graft.run import GraftRun
from dspark.graft.target import frozen_target
from dspark.hub.catalog.pairs import PairFiles

TRIALS, TOKENS = 2, 12


@pytest.fixture(scope="module")
def finished(
    tiny_chat_dir: Path,
    make_tiny_head: Callable[[Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
    small_config: GraftConfig,
) -> tuple[GraftJob, list[GraftEvent]]:
    """A whole run over two kinds of prompts, compared with a random head for the same base."""
    folder = tmp_path_factory.mktemp("graft")
    for kind in ("math", "chat"):
        lines = [json.dumps({"prompt": f"{kind} {n}"}) for n in range(6)]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines))
    job = GraftJob(
        base=PairFiles("tiny", tiny_chat_dir, None),
        source=PromptSource((folder / "math.jsonl", folder / "chat.jsonl")),
        data=folder / "answers.jsonl",
        out=folder / "head",
        config=replace(
            small_config, mask_token_id=200, max_answer_tokens=12, length=120, eval_prompts=6
        ),
        released=make_tiny_head(tiny_chat_dir),
        measurement=BenchConfig(trials=TRIALS, max_tokens=TOKENS),
        full_head=True,
        licence="mit",
        command="dspark graft --base tiny",
    )
    with pytest.MonkeyPatch.context() as patch:
        LOADS.clear()
        for module, name in ((session, "load_target"), (frozen_target, "read_hf_model")):
            patch.setattr(module, name, _counting(getattr(module, name)))
        return job, list(GraftRun(job).events())


LOADS: list[int] = []  # at each load of the target, how many copies of it were in memory


def _counting(load: Callable[..., Any]) -> Callable[..., Any]:
    def counting(*args: Any, **options: Any) -> Any:
        LOADS.append(sum(copy() is not None for copy in COPIES))
        model = load(*args, **options)
        COPIES.append(weakref.ref(model))
        return model

    return counting


COPIES: list[weakref.ref[Any]] = []


def test_the_target_is_loaded_three_times_and_held_once(
    finished: tuple[GraftJob, list[GraftEvent]],
) -> None:
    """To write the answers, to train, and to judge, beside a released head too."""
    assert LOADS == [0, 0, 0]


def _measured(events: list[GraftEvent]) -> Speedup:
    (measured,) = [event for event in events if isinstance(event, Speedup)]
    return measured


def test_a_run_ends_with_a_measured_speedup(
    finished: tuple[GraftJob, list[GraftEvent]],
) -> None:
    events = finished[1]
    report = _measured(events).report
    assert report.is_identical and len(report.speedup.trials) == TRIALS
    assert report.speedup.low > 0.0
    assert {each.category for each in report.categories} == {"math", "chat"}
    assert report.prompts == 6
    stages = [e for e in events if isinstance(e, CorpusProgress) and "speed-up" in e.stage]
    assert stages[-1].done == stages[-1].total == 2 * 6 * TRIALS


def test_the_released_head_answers_the_same_prompts(
    finished: tuple[GraftJob, list[GraftEvent]],
) -> None:
    job, events = finished
    prompts = [answer.prompt_ids for answer in split(AnswerFile(job.data).read(), 6).held_out]
    assert job.released is not None
    with OpenTarget(job.base, [job.released], job.runtime) as target:
        alone = evaluate(target, job.released, prompts, judge.EVALUATION_TOKENS)
    assert _measured(events).released == alone


def test_what_was_measured_is_kept(finished: tuple[GraftJob, list[GraftEvent]]) -> None:
    job, events = finished
    measured = _measured(events)
    document = read_measured(job.out)
    assert document is not None
    assert document["verdict"] == measured.verdict.sentence
    assert document["speedup_trials"] == list(measured.report.speedup.trials)
    assert measured.released is not None
    assert document["held_out"]["tau"] == measured.own.tau
    assert document["released"]["tau"] == measured.released.tau
    assert document["command"] == "dspark graft --base tiny"
    assert document["machine"]["cores"] and document["versions"]["torch"]
    assert not list(job.out.glob(".*"))


def test_new_weights_take_an_old_measurement_away(
    finished: tuple[GraftJob, list[GraftEvent]], tmp_path: Path
) -> None:
    job, _ = finished
    config = replace(job.config, steps=1)
    other = replace(job, out=tmp_path / "head", config=config, measurement=None, full_head=False)
    other.out.mkdir()
    (other.out / MEASURED).write_text("{}")
    list(GraftRun(other).events())
    assert not (other.out / MEASURED).exists()
    assert "plain decoding's" not in (other.out / "README.md").read_text()


def test_every_step_is_kept_with_what_the_view_shows(
    finished: tuple[GraftJob, list[GraftEvent]],
) -> None:
    lines = [json.loads(line) for line in finished[0].metrics_path.read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert len(steps) == 6
    for line in steps:
        assert line["tokens_per_second"] == pytest.approx(line["tokens"] / line["seconds"])
        assert line["memory_bytes"] > 2**20
        assert {"loss", "cross_entropy", "l1", "confidence", "tau"} < set(line)


def test_a_full_head_has_every_tensor_of_the_layout(
    finished: tuple[GraftJob, list[GraftEvent]],
) -> None:
    from dspark.checkpoints.deepspec import read_head

    job, _ = finished
    config, _ = read_head(job.out)
    tensors = load_file(job.out / "model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == config.expected_tensors()
    base = load_file(job.base.target / "model.safetensors")
    for name in SHARED_WITH_TARGET:
        assert tensors[name].dtype == torch.bfloat16
        own = base.get(name, base["model.embed_tokens.weight"])
        assert torch.equal(tensors[name], own.bfloat16())


def test_the_card_tells_what_was_measured_and_nothing_else(
    finished: tuple[GraftJob, list[GraftEvent]],
) -> None:
    job, events = finished
    card = ModelCard.load(job.out / "README.md")
    assert card.data.base_model == "tiny" and card.data.license == "mit"
    assert card.data.library_name == "dspark" and "dspark" in card.data.tags
    text = card.content
    measured = _measured(events)
    speedup = measured.report.speedup
    for said in (
        measured.verdict.sentence,
        f"{speedup.median:.2f} × ({speedup.low:.2f} to {speedup.high:.2f}",
        f"{measured.own.tau:.2f} on 6 held-out prompts",
        "| prompts | math.jsonl, chat.jsonl |",
        "| steps | 6 |",
        "| learning rate (not the default) | 0.003 |",
        "vanilla, rank 8",
        "dspark chat --target tiny --draft HEAD",
        '"num_speculative_tokens":4',
    ):
        assert said in text, said
    assert "| position | shift | temperature | ECE before |" in text
    assert "--lean-head" not in text and str(job.out.parent) not in text


def _report(trials: tuple[float, ...], *, is_identical: bool = True) -> BenchReport:
    plain = Figure((1.0,) * len(trials))
    categories = (CategoryFigures("math", 4, 1.5, 2.0), CategoryFigures("chat", 4, 0.9, 1.2))
    return BenchReport(
        prompts=8,
        plain=ArmFigures(plain, plain),
        dspark=ArmFigures(Figure(trials), Figure(trials)),
        tau=1.5,
        verified_per_round=3.0,
        acceptance_by_position=(),
        categories=categories,
        is_identical=is_identical,
        differing_prompts=0 if is_identical else 2,
        difference=None,
    )


@pytest.mark.parametrize(
    ("trials", "is_worth_using", "begins"),
    [
        ((1.2, 1.3, 1.4), True, "Worth using: 1.30 ×"),
        ((1.05, 1.3, 1.4), True, "Worth using, by a small margin: 1.30 ×"),
        ((0.9, 1.0, 1.4), False, "Not worth using yet: 1.00 ×"),
    ],
)
def test_the_verdict_follows_the_spread(
    trials: tuple[float, ...], is_worth_using: bool, begins: str
) -> None:
    verdict = judge_speed(_report(trials), "train longer")
    assert verdict.is_worth_using is is_worth_using
    assert verdict.sentence.startswith(begins)
    assert f"{min(trials):.2f} to {max(trials):.2f} in 3 trials of 8" in verdict.sentence
    assert f"{WORTH_USING:.2f} ×" in verdict.sentence
    assert "most on math (1.50 ×), least on chat (0.90 ×)" in verdict.sentence
    assert ("train longer" in verdict.sentence) is not is_worth_using


def test_a_head_that_changes_the_output_is_not_worth_using() -> None:
    verdict = judge_speed(_report((2.0, 2.0, 2.0), is_identical=False), "")
    assert not verdict.is_worth_using
    assert "differs from plain decoding on 2 of 8" in verdict.sentence


def test_prompts_are_chosen_evenly() -> None:
    answers = [Answer((n,), (1, 2), f"prompt {n}", "") for n in range(20)]
    origins = {f"prompt {n}": "few" if n < 2 else "many" for n in range(19)}
    chosen = choose_prompts(answers, origins, limit=8)
    assert [each.category for each in chosen[:3]] == ["few", "many", "other"]
    assert len(chosen) == len({each.token_ids for each in chosen}) == 8
    assert sum(each.category == "few" for each in chosen) == 2
