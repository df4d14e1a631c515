"""Steps of training: they learn, and they go on exactly where they stopped."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.config import GraftConfig
from dspark.errors import CheckpointError, InputError
from dspark.graft.data.answer_file import Answer
from dspark.graft.target.frozen_target import FrozenTarget
from dspark.graft.train import checkpoint
from dspark.graft.train.trainer import Trainer, learning_rate

MakeTrainer = Callable[..., Trainer]


def _weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.head.state_dict().items()}


def _assert_same_weights(one: Trainer, other: Trainer) -> None:
    expected = _weights(other)
    for name, tensor in _weights(one).items():
        assert torch.equal(tensor, expected[name]), name


def test_training_raises_tau_on_answers_it_was_not_trained_on(
    make_trainer: MakeTrainer, small_config: GraftConfig, answers: list[Answer]
) -> None:
    trainer = make_trainer(replace(small_config, steps=80, batch_size=7, anchors=16))
    before = trainer.validate(answers[21:])
    for _ in trainer.steps():
        pass
    after = trainer.validate(answers[21:])
    assert after.loss < 0.9 * before.loss
    assert after.tau > before.tau + 0.3
    assert after.confidence < before.confidence


def test_the_target_stays_as_it_was(
    make_trainer: MakeTrainer, target: FrozenTarget, answers: list[Answer]
) -> None:
    before = {name: tensor.clone() for name, tensor in target.model.state_dict().items()}
    trainer = make_trainer()
    start = _weights(trainer)
    for _ in trainer.steps():
        pass
    for name, tensor in target.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for name, tensor in trainer.head.state_dict().items():
        assert not torch.equal(tensor, start[name]), f"{name} was never trained"


def test_a_resumed_run_ends_with_the_same_weights(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    whole = make_trainer()
    reports = list(whole.steps())
    first = make_trainer()
    for _ in range(2):
        first.step()
    checkpoint.save(tmp_path / "state.pt", first, "run")
    second = make_trainer()
    checkpoint.load(tmp_path / "state.pt", second, "run")
    rest = list(second.steps())
    _assert_same_weights(second, whole)
    assert [r.loss for r in rest] == [r.loss for r in reports[2:]]
    assert second.tokens_seen == whole.tokens_seen


@pytest.mark.parametrize("change", [{"optimizer": "muon", "average": 0.9}, {"nla_weight": 0.9}])
def test_other_optimizers_and_losses_learn_and_resume(
    make_trainer: MakeTrainer,
    small_config: GraftConfig,
    answers: list[Answer],
    tmp_path: Path,
    change: dict[str, Any],
) -> None:
    config = replace(small_config, **change, position_weights="dpace", steps=8)
    whole = make_trainer(config)
    before = whole.validate(answers[21:])
    list(whole.steps())
    assert whole.validate(answers[21:]).tau > before.tau
    first, second = make_trainer(config), make_trainer(config)
    for _ in range(3):
        first.step()
    checkpoint.save(tmp_path / "state.pt", first, "run")
    checkpoint.load(tmp_path / "state.pt", second, "run")
    list(second.steps())
    _assert_same_weights(second, whole)
    ours, theirs = second.final_weights(), whole.final_weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    differs = any(not torch.equal(theirs[n], t) for n, t in _weights(whole).items())
    assert differs == bool(config.average)


def test_weights_do_not_depend_on_the_memory_for_taps(
    make_trainer: MakeTrainer, target: FrozenTarget
) -> None:
    kept, left = target._kept, target._bytes_left
    with_memory = make_trainer()
    list(with_memory.steps())
    assert target._kept
    try:
        target._kept, target._bytes_left = {}, 0
        without = make_trainer()
        list(without.steps())
    finally:
        target._kept, target._bytes_left = kept, left
    _assert_same_weights(without, with_memory)


def test_a_run_goes_on_with_more_answers_but_not_with_fewer(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """Nothing of its state is lost, and the new answers are met in the first whole epoch."""
    few, many = make_trainer(num_answers=9), make_trainer(num_answers=21)
    few.step()
    checkpoint.save(tmp_path / "state.pt", few, "run")
    assert checkpoint.load(tmp_path / "state.pt", many, "run") == len(many.answers) - 9 > 0
    assert many.step_index == few.step_index == 1
    _assert_same_weights(many, few)
    per_epoch = len(many.answers) // many.config.batch_size
    met = {answer for step in range(per_epoch, 2 * per_epoch) for answer in many._batch(step)}
    assert met == set(many.answers)
    checkpoint.save(tmp_path / "state.pt", many, "run")
    with pytest.raises(InputError, match="other settings or data"):
        checkpoint.load(tmp_path / "state.pt", few, "run")


def test_another_run_is_not_gone_on_with(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer()
    checkpoint.save(tmp_path / "state.pt", trainer, "run")
    with pytest.raises(InputError, match="other settings or data"):
        checkpoint.load(tmp_path / "state.pt", trainer, "another run")


def test_a_torn_state_is_named(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    trainer = make_trainer()
    checkpoint.save(path, trainer, "run")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a training state"):
        checkpoint.load(path, trainer, "run")


def test_every_answer_is_seen_once_an_epoch(
    make_trainer: MakeTrainer, answers: list[Answer]
) -> None:
    trainer = make_trainer()
    for epoch in range(2):
        seen = [a.prompt for step in range(7) for a in trainer._batch(7 * epoch + step)]
        assert sorted(seen) == sorted(a.prompt for a in answers[:21])


def test_learning_rate_warms_up_and_falls_to_zero(small_config: GraftConfig) -> None:
    config = replace(small_config, steps=100, warmup=0.04, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.001


def test_expected_tau_counts_only_supervised_slots(
    make_trainer: MakeTrainer, small_config: GraftConfig, answers: list[Answer]
) -> None:
    short = [replace(answers[0], answer_ids=answers[0].answer_ids[:2])]
    report = make_trainer(small_config).validate(short)
    assert report.positions == 1
    assert report.tau == pytest.approx(1.0 + report.acceptance_by_position[0])
    assert report.acceptance_by_position[1:] == (0.0, 0.0, 0.0)


def test_markov_tables_may_learn_more_slowly_or_not_at_all(
    make_trainer: MakeTrainer, small_config: GraftConfig
) -> None:
    trainer = make_trainer(replace(small_config, markov_learning_share=0.0))
    before = {name: weight.clone() for name, weight in _weights(trainer).items()}
    for _ in trainer.steps():
        pass
    changed = {n for n, weight in _weights(trainer).items() if not torch.equal(weight, before[n])}
    tables = {"markov_head.markov_w1.weight", "markov_head.markov_w2.weight"}
    assert changed == before.keys() - tables


def test_a_loss_over_part_of_the_vocabulary_learns_too(
    make_trainer: MakeTrainer, small_config: GraftConfig, answers: list[Answer]
) -> None:
    config = replace(small_config, steps=40, loss_vocabulary=8)
    trainer = make_trainer(config)
    before = trainer.validate(answers[21:])
    for _ in trainer.steps():
        pass
    assert trainer.validate(answers[21:]).tau > before.tau
