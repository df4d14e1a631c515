"""The plan is told before anything starts, agrees with what then happens, and leaves nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dspark.config import GraftConfig, RuntimeConfig
from dspark.errors import InputError
from dspark.graft.data.prompt_sources import PromptSource
from dspark.graft.job import GraftJob, Prepared
from dspark.graft.plan import draw_plan, measured
from dspark.graft.run import GraftRun
from dspark.hub.catalog.pairs import PairFiles
from dspark_cli.app import app

MASK = 200


@pytest.fixture
def job(tiny_chat_dir: Path, tmp_path: Path, small_config: GraftConfig) -> GraftJob:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {n}"}) + "\n" for n in range(12)))
    config = replace(small_config, mask_token_id=MASK, max_answer_tokens=12, length=120)
    return GraftJob(
        base=PairFiles("tiny", tiny_chat_dir, None),
        source=PromptSource((prompts,)),
        data=tmp_path / "answers.jsonl",
        out=tmp_path / "head",
        config=config,
        runtime=RuntimeConfig("cpu", "float32"),
    )


def test_every_size_has_a_reason(job: GraftJob) -> None:
    items = {item.name: item for item in draw_plan(job).items}
    names = ["base", "algorithm", "layers", "taps", "block", "rank", "draft vocabulary", "products"]
    assert list(items) == names
    assert all(item.value and item.reason for item in items.values())
    assert (items["taps"].value, items["taps"].reason) == ("0, 1", "as asked")
    spread = draw_plan(replace(job, config=replace(job.config, taps=None)))
    assert "evenly" in {item.name: item.reason for item in spread.items}["taps"]


def test_the_plan_is_what_then_happens(job: GraftJob) -> None:
    plan = draw_plan(job)
    assert (plan.num_answers, plan.num_missing) == (12, 12)
    prepared = next(e for e in GraftRun(job).events() if isinstance(e, Prepared))
    assert plan.memory.head == 4 * prepared.parameters
    list(GraftRun(job).events())
    assert abs(plan.disk.head / (job.out / "model.safetensors").stat().st_size - 1.0) < 0.2
    assert abs(plan.disk.checkpoint / job.state_path.stat().st_size - 1.0) < 0.2
    assert (draw_plan(job).num_answers, draw_plan(job).num_missing) == (12, 0)


def test_a_measurement_leaves_nothing_behind(job: GraftJob) -> None:
    folder = job.data.parent
    before = sorted(folder.rglob("*"))
    plan = measured(job, draw_plan(job))
    assert sorted(folder.rglob("*")) == before
    assert plan.duration is not None
    assert plan.duration.measured_rounds > 0 and plan.duration.measured_steps > 0
    for span in (plan.duration.answers, plan.duration.steps):
        assert 0.0 < span.low <= span.middle <= span.high


def test_a_longer_training_is_said_to_take_longer(job: GraftJob) -> None:
    list(GraftRun(job).events())
    longer = replace(job, config=replace(job.config, steps=100 * job.config.steps))
    short, long = (measured(each, draw_plan(each)).duration for each in (job, longer))
    assert short is not None and long is not None
    assert short.answers.high == long.answers.high == 0.0  # all are there
    assert long.steps.middle > 5 * short.steps.middle


def test_a_tapped_last_layer_is_refused_by_the_plan_already(job: GraftJob) -> None:
    with pytest.raises(InputError, match="taps"):
        draw_plan(replace(job, config=replace(job.config, taps=(0, 2))))


@pytest.mark.parametrize("as_json", [True, False])
def test_dry_run_prints_and_trains_nothing(job: GraftJob, as_json: bool) -> None:
    out = str(job.out)
    arguments = ["graft", "--base", str(job.base.target), "--prompts", str(job.source.files[0])]
    arguments += ["--out", out, "--mask-token", str(MASK), "--length", "120", "--dry-run"]
    arguments += ["--max-answer-tokens", "12", "--device", "cpu", "--batch-size", "2"]
    result = CliRunner().invoke(app, [*arguments, *(["--json"] if as_json else [])])
    assert result.exit_code == 0, result.output
    assert not job.out.exists()
    if as_json:
        plan = json.loads(result.stdout)
        assert set(plan) >= {"items", "memory", "disk", "duration"}
    else:
        for word in ("base", "taps", "memory", "disk", "time"):
            assert f"\n{word}:" in "\n" + result.stdout
