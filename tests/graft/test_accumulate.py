"""A batch in parts, and the head's products in bf16, change how a step is computed and no more."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from dspark.config import Algorithm, GraftConfig, graft_config
from dspark.graft.data.answer_file import Answer
from dspark.graft.train import checkpoint
from dspark.graft.train.trainer import StepReport, Trainer

MakeTrainer = Callable[..., Trainer]
BF16_ROUNDING = 2.0**-8  # of one value, relative


def _train(trainer: Trainer) -> list[StepReport]:
    return list(trainer.steps())


def _gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Of the first step."""
    trainer.step()
    named = trainer.head.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def _relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp_min(1e-30))


@pytest.mark.parametrize("algorithm", ["dspark", "eagle3"])
@pytest.mark.parametrize("accumulate", [2, 3, 8])
def test_parts_add_up_to_the_whole_batchs_gradient(
    make_trainer: MakeTrainer, small_config: GraftConfig, algorithm: Algorithm, accumulate: int
) -> None:
    """To the rounding of float32 sums in another order: 1e-5 of a gradient's length."""
    names = ("steps", "batch_size", "anchors", "length", "intermediate_size", "taps", "seed")
    sizes = {name: getattr(small_config, name) for name in names}
    config = graft_config(algorithm, **sizes, block_size=4, mask_token_id=95, markov_rank=8)
    whole = _gradients(make_trainer(config))
    parts = _gradients(make_trainer(replace(config, accumulate=accumulate)))
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        assert _relative(parts[name], gradient) < 1e-5, name


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [*((name, {}) for name in get_args(Algorithm)), ("dspark", {"position_weights": "dpace"})],
    ids=[*get_args(Algorithm), "dpace"],
)
def test_anchors_in_pieces_add_up_to_the_whole_gradient(
    make_trainer: MakeTrainer,
    small_config: GraftConfig,
    algorithm: Algorithm,
    changes: dict[str, Any],
) -> None:
    """To 1e-6 of a gradient's length, about ten roundings of float32."""
    names = ("steps", "batch_size", "anchors", "length", "intermediate_size", "taps", "seed")
    sizes = {name: getattr(small_config, name) for name in names}
    config = graft_config(
        algorithm, **sizes, **changes, block_size=4, mask_token_id=95, markov_rank=8
    )
    whole = _gradients(make_trainer(config))
    for at_once in (1, 4, 7):  # a piece is one block, part of a sequence, of two sequences
        pieces = _gradients(make_trainer(replace(config, anchors_at_once=at_once)))
        assert whole.keys() == pieces.keys()
        for name, gradient in whole.items():
            assert _relative(pieces[name], gradient) < 1e-6, (at_once, name)


def test_a_step_holds_no_more_anchors_than_it_may(
    make_trainer: MakeTrainer, small_config: GraftConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And reads the target once for each sequence, even without memory for taps."""
    trainer = make_trainer(replace(small_config, anchors_at_once=4))
    monkeypatch.setattr(trainer.target, "_kept", {})
    monkeypatch.setattr(trainer.target, "_read", {})
    monkeypatch.setattr(trainer.target, "_bytes_left", 0)
    held: list[int] = []
    read: list[tuple[int, ...]] = []
    forward, taps = trainer.objective.forward, trainer.target._cached

    def watched(part):  # type: ignore[no-untyped-def]
        held.append(sum(len(each.blocks.anchors) for each in part.sequences))
        return forward(part)

    def watched_taps(token_ids: tuple[int, ...]):  # type: ignore[no-untyped-def]
        read.append(token_ids)
        return taps(token_ids)

    monkeypatch.setattr(trainer.objective, "forward", watched)
    monkeypatch.setattr(trainer.target, "_cached", watched_taps)
    trainer.step()
    assert held == [4, 4, 4, 3]
    assert len(read) == len(set(read)) == 3


@pytest.mark.parametrize("changes", [{"accumulate": 3}, {"anchors_at_once": 4}], ids=str)
def test_what_is_reported_is_of_the_whole_batch(
    make_trainer: MakeTrainer, small_config: GraftConfig, changes: dict[str, Any]
) -> None:
    config = replace(small_config, loss_vocabulary=8)
    whole = make_trainer(config).step()
    parts = make_trainer(replace(config, **changes)).step()
    assert (parts.positions, parts.tokens) == (whole.positions, whole.tokens)
    for name in ("loss", "cross_entropy", "l1", "confidence", "tau", "grad_norm"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-5), name
    assert parts.acceptance_by_position == pytest.approx(whole.acceptance_by_position, rel=1e-5)


def test_only_a_part_is_held_at_a_time(
    make_trainer: MakeTrainer, small_config: GraftConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(replace(small_config, accumulate=2))
    seen: list[int] = []
    forward = trainer.objective.forward

    def watched(part):  # type: ignore[no-untyped-def]
        seen.append(len(part.sequences))
        return forward(part)

    monkeypatch.setattr(trainer.objective, "forward", watched)
    trainer.step()
    assert seen == [2, 1]


def test_losses_in_bf16_agree_within_its_rounding(
    make_trainer: MakeTrainer, small_config: GraftConfig
) -> None:
    """Before the first step the weights are the same; a hidden state then passes about ten rounded
    products, whose errors add up like a random walk: sqrt(10) roundings, doubled for safety."""
    exact = make_trainer(small_config).step()
    half = make_trainer(replace(small_config, precision="bfloat16")).step()
    bound = 2 * 10**0.5 * BF16_ROUNDING
    for name in ("loss", "cross_entropy", "l1", "confidence"):
        assert getattr(half, name) == pytest.approx(getattr(exact, name), rel=bound), name
    assert half.loss != exact.loss, "nothing was rounded"


def test_weights_and_moments_stay_float32_in_bf16(
    make_trainer: MakeTrainer, small_config: GraftConfig
) -> None:
    trainer = make_trainer(replace(small_config, precision="bfloat16"))
    trainer.step()
    moments = [t for state in trainer.optimizer.state.values() for t in state.values()]
    for tensor in (*trainer.head.parameters(), *moments):
        assert tensor.dtype == torch.float32


@pytest.mark.parametrize("algorithm", ["dspark", "eagle3"])
def test_a_head_trained_in_bf16_learns_as_one_in_float32(
    make_trainer: MakeTrainer,
    small_config: GraftConfig,
    answers: list[Answer],
    algorithm: Algorithm,
) -> None:
    config = replace(
        graft_config(algorithm, block_size=4, mask_token_id=95, markov_rank=8, taps=(0, 1)),
        steps=16,
        batch_size=4,
        anchors=6,
        length=40,
        learning_rate=3e-3,
        intermediate_size=32,
        seed=5,
    )
    exact, half = (
        make_trainer(replace(config, precision=each)) for each in ("float32", "bfloat16")
    )
    before = exact.validate(answers[21:])
    _train(exact)
    _train(half)
    gained = exact.validate(answers[21:]).tau - before.tau
    assert gained > 0.05
    assert half.validate(answers[21:]).tau - before.tau > 0.8 * gained


@pytest.mark.parametrize(
    "changes", [{"accumulate": 2}, {"precision": "bfloat16"}], ids=["accumulate", "bfloat16"]
)
def test_a_resumed_run_ends_with_the_same_weights(
    make_trainer: MakeTrainer, small_config: GraftConfig, tmp_path: Path, changes: dict[str, object]
) -> None:
    config = replace(small_config, steps=4, **changes)  # type: ignore[arg-type]
    whole, first, second = (make_trainer(config) for _ in range(3))
    _train(whole)
    first.step()
    checkpoint.save(tmp_path / "state.pt", first, "run")
    checkpoint.load(tmp_path / "state.pt", second, "run")
    _train(second)
    expected = whole.head.state_dict()
    for name, tensor in second.head.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
