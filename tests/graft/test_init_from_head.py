"""Going on from a head: in its shape, with what it lacks added, refused before anything runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dspark.checkpoints.heads import read_draft, read_draft_config
from dspark.config import GraftConfig, graft_config
from dspark.errors import InputError, PairMismatchError
from dspark.graft.data.corpus import CorpusProgress
from dspark.graft.data.prompt_sources import PromptSource
from dspark.graft.head.init_from_head import with_shape_of
from dspark.graft.job import GraftJob
from dspark.graft.plan import draw_plan
from dspark.graft.run import GraftRun
from dspark.hub.catalog.pairs import PairFiles
from dspark_cli.app import app

MASK = 200
SETTINGS = {"mask_token_id": MASK, "max_answer_tokens": 12, "length": 120, "steps": 2}


@pytest.fixture
def job(tiny_chat_dir: Path, tmp_path: Path, small_config: GraftConfig) -> GraftJob:
    """A head of two layers in another shape than the defaults'."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"Say {n}"}) for n in range(10)))
    return GraftJob(
        base=PairFiles("tiny", tiny_chat_dir, None),
        source=PromptSource((prompts,)),
        data=tmp_path / "answers.jsonl",
        out=tmp_path / "head",
        config=replace(small_config, **SETTINGS, num_layers=2, block_size=3, markov_rank=5),
        full_head=False,
    )


def test_the_command_goes_on_in_the_shape_of_the_head(job: GraftJob, tmp_path: Path) -> None:
    list(GraftRun(job).events())
    options = ["--base", str(job.base.target), "--prompts", str(tmp_path / "prompts.jsonl")]
    options += ["--data", str(job.data), "--out", str(tmp_path / "onward"), "--plain"]
    options += ["--init-from", str(job.out), "--steps", "1", "--lr", "1e-9", "--lean-head"]
    options += ["--no-measure", "--max-answer-tokens", "12", "--length", "120", "--device", "cpu"]
    options += ["--eval-prompts", "2"]
    outcome = CliRunner().invoke(app, ["graft", *options])
    assert outcome.exit_code == 0, outcome.output
    lines = outcome.output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["head", "tau"])
    table = lines[start : start + 3]
    titles, began, trained = (line.split() for line in table)
    assert titles[:2] == ["head", "tau"] and titles[-2:] == ["draft", "3"]
    assert began[:2] == ["began", "with"] and trained[0] == "trained"
    assert began[2:] == trained[1:]  # at this rate nothing was learnt
    (before, old), (after, new) = read_draft(job.out), read_draft(tmp_path / "onward")
    fitted = ("confidence_temperatures", "confidence_shifts", "greedy_confidence")
    uncalibrated = dict.fromkeys(fitted)
    assert replace(after, **uncalibrated) == replace(before, **uncalibrated)
    for name in old:
        torch.testing.assert_close(new[name], old[name], atol=1e-6, rtol=0.01)


def test_options_win_over_the_shape_of_the_head(job: GraftJob) -> None:
    list(GraftRun(job).events())
    head = read_draft_config(job.out)
    config = with_shape_of(graft_config("dspark", block_size=6), head, {"block_size"})
    assert (config.block_size, config.num_layers, config.markov_rank) == (6, 2, 5)
    assert (config.taps, config.mask_token_id) == (head.target_layer_ids, MASK)


def test_a_dflash_backbone_becomes_a_dspark_head(job: GraftJob, tmp_path: Path) -> None:
    changes = {"markov_type": "none", "has_confidence": False, "algorithm": "dflash"}
    dflash = replace(job, config=replace(job.config, **changes))
    list(GraftRun(dflash).events())
    config = with_shape_of(graft_config("dspark", **SETTINGS), read_draft_config(dflash.out), ())
    config = replace(config, steps=1, learning_rate=1e-9, eval_prompts=2)
    onward = replace(job, out=tmp_path / "onward", init_from=dflash.out, config=config)
    events = list(GraftRun(onward).events())
    notes = [note for e in events if isinstance(e, CorpusProgress) for note in e.notes]
    assert [note.split(" starts")[0] for note in notes] == [
        "the sequential head",
        "the confidence head",
    ]
    old, (head, new) = read_draft(dflash.out)[1], read_draft(onward.out)
    assert (head.markov_type, head.has_confidence, head.num_layers) == ("vanilla", True, 2)
    for name in old:
        torch.testing.assert_close(new[name], old[name], atol=1e-6, rtol=0.01)


def test_what_does_not_fit_is_refused_before_anything_is_written(job: GraftJob) -> None:
    list(GraftRun(job).events())
    wider = replace(job, init_from=job.out, config=replace(job.config, intermediate_size=24))
    with pytest.raises(PairMismatchError, match=r"mlp.*the training needs \["):
        draw_plan(wider)
    with pytest.raises(InputError, match="eagle3 cannot continue"):
        with_shape_of(graft_config("eagle3"), read_draft_config(job.out), ())
