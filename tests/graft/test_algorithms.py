"""DFlash, Eagle3 and MTP-1 beside DSpark, in the same trainer."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from dspark.checkpoints.deepspec import read_draft
from dspark.checkpoints.dflash2_config import DFlash2Config
from dspark.checkpoints.domino_config import DominoConfig
from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.checkpoints.eagle3_config import Eagle3Config
from dspark.config import ALGORITHMS, Algorithm, GraftConfig, StopConfig, graft_config
from dspark.drafters.eagle3 import Eagle3Drafter
from dspark.drafters.eagle3_training_blocks import unrolled_hidden
from dspark.drafters.training_blocks import sample_blocks
from dspark.engine.session import open_session
from dspark.errors import InputError
from dspark.events import Finished
from dspark.graft.data.answer_file import Answer, AnswerFile
from dspark.graft.data.prompt_sources import PromptSource
from dspark.graft.head.bigram_init import Bigrams
from dspark.graft.head.init_from_target import start_from_target
from dspark.graft.head.shape import draft_config
from dspark.graft.job import GraftJob
from dspark.graft.run import GraftRun
from dspark.graft.target.frozen_target import FrozenTarget
from dspark.graft.train.trainer import Trainer
from dspark.hub.catalog.pairs import PairFiles
from dspark.models.eagle3_head import Eagle3Head
from dspark.progress import follow
from tests.graft.forced import Forced

MASK = 95
OTHERS: tuple[Algorithm, ...] = ("dflash", "dflash2", "domino", "eagle3", "mtp")
MakeTrainer = Callable[..., Trainer]


def _config(small: GraftConfig, algorithm: Algorithm, **changes: object) -> GraftConfig:
    """The small settings, with what the algorithm has of its own."""
    own = {"algorithm", *ALGORITHMS[algorithm].settings}
    settings = {name: value for name, value in asdict(small).items() if name not in own}
    return graft_config(algorithm, **{**settings, **changes})


@pytest.mark.parametrize("block_size", [1, 4])
def test_an_unrolled_head_sees_in_training_what_it_sees_in_decoding(
    block_size: int, target: FrozenTarget, answers: list[Answer], small_config: GraftConfig
) -> None:
    config = _config(small_config, "eagle3", block_size=block_size)
    torch.manual_seed(2)
    shape = draft_config(target.config, config, MASK)
    assert isinstance(shape, Eagle3Config)
    head = Eagle3Head(shape)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    ids = torch.tensor(answers[0].token_ids)
    start = len(answers[0].prompt_ids)
    blocks = sample_blocks(ids, start, 6, block_size, torch.Generator().manual_seed(0))
    taps = target.view(answers[0].token_ids).taps
    with torch.no_grad():
        hidden = unrolled_hidden(head, head.rotary_table(), target.embedding, taps, blocks)
        logits = hidden @ target.output_head.T
        drafter = Eagle3Drafter(
            shape, head.state_dict(), target.embedding, lambda x: x @ target.output_head.T
        )
        for index, anchor in enumerate(blocks.anchors.tolist()):
            slot = drafter.open()
            drafter.extend([slot], [ids[:anchor]], [taps[:anchor]])
            chooser = Forced(blocks.labels[index].tolist())
            drafter.propose([slot], ids[anchor : anchor + 1], chooser)
            shown = torch.stack(chooser.logits)
            torch.testing.assert_close(logits[index], shown, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("algorithm", OTHERS)
def test_it_learns_on_answers_it_was_not_trained_on(
    algorithm: Algorithm,
    make_trainer: MakeTrainer,
    small_config: GraftConfig,
    answers: list[Answer],
) -> None:
    trainer = make_trainer(_config(small_config, algorithm, steps=80, batch_size=7, anchors=16))
    before = trainer.validate(answers[21:])
    start = {name: tensor.clone() for name, tensor in trainer.head.state_dict().items()}
    for _ in trainer.steps():
        pass
    after = trainer.validate(answers[21:])
    assert after.loss < 0.9 * before.loss
    assert after.tau > before.tau + (0.1 if algorithm == "mtp" else 0.2)
    assert after.confidence == 0.0
    for name, tensor in trainer.head.state_dict().items():
        assert not torch.equal(tensor, start[name]), f"{name} was never trained"


def test_eagle3_begins_near_the_target_too(
    make_trainer: MakeTrainer,
    small_config: GraftConfig,
    answers: list[Answer],
    target: FrozenTarget,
) -> None:
    config = _config(small_config, "eagle3", intermediate_size=None)
    from_nothing, from_target = make_trainer(config), make_trainer(config)
    notes = start_from_target(
        from_target.head, target, Bigrams(target), torch.Generator().manual_seed(0)
    )
    assert notes == ()
    nothing, start = (t.validate(answers[21:]) for t in (from_nothing, from_target))
    assert start.tau > nothing.tau


@pytest.mark.parametrize("algorithm", OTHERS)
def test_from_prompts_to_a_head_that_the_engine_decodes_with(
    algorithm: Algorithm, tiny_chat_dir: Path, tmp_path: Path, small_config: GraftConfig
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"Say {n}"}) for n in range(10)))
    changes = {"mask_token_id": 200, "max_answer_tokens": 12, "length": 120}
    job = GraftJob(
        base=PairFiles("tiny", tiny_chat_dir, None),
        source=PromptSource((prompts,)),
        data=tmp_path / "answers.jsonl",
        out=tmp_path / "head",
        config=_config(small_config, algorithm, **changes),
    )
    list(GraftRun(job).events())
    config, tensors = read_draft(job.out)
    if algorithm == "dflash":
        assert isinstance(config, DSparkConfig) and config.markov_type == "none"
        assert not config.has_confidence
    elif algorithm == "dflash2":
        assert isinstance(config, DFlash2Config) and config.block_rows == 5
    elif algorithm == "domino":
        assert isinstance(config, DominoConfig) and config.block_rows == 4
    elif algorithm in ("eagle3", "mtp"):
        assert isinstance(config, Eagle3Config)
        assert (config.ttt_length, config.step_loss_decay) == (config.block_size, 0.8)
    assert config.block_size == (1 if algorithm == "mtp" else 4)
    assert not any(name.startswith(("markov", "confidence")) for name in tensors)

    session, stop = follow(open_session(PairFiles("tiny", tiny_chat_dir, job.out))), StopConfig(60)
    for answer in AnswerFile(job.data).read()[:3]:
        drafted, plain = (
            next(
                e
                for e in session.generate(answer.prompt_ids, stop=stop, plain=is_plain)
                if isinstance(e, Finished)
            )
            for is_plain in (False, True)
        )
        assert drafted.token_ids == plain.token_ids

    onward = replace(job, out=tmp_path / "onward", init_from=job.out)
    list(GraftRun(replace(onward, config=replace(job.config, learning_rate=0.0))).events())
    again = read_draft(onward.out)[1]
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)


def test_an_unrolled_head_has_one_layer(target: FrozenTarget, small_config: GraftConfig) -> None:
    config = _config(small_config, "eagle3", num_layers=2)
    with pytest.raises(InputError, match="one layer"):
        draft_config(target.config, config, MASK)


def test_settings_win_over_a_recipe() -> None:
    config = graft_config("eagle3", position_decay=2.0, steps=None)
    assert (config.position_decay, config.steps) == (2.0, GraftConfig().steps)
    assert (config.cross_entropy_weight, config.distillation_weight) == (0.0, 1.0)
    assert graft_config("dspark") == GraftConfig()
