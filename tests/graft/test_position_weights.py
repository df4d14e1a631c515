"""D-PACE's weights of positions against their closed form."""

from dataclasses import replace

import pytest
import torch

from dspark.config import GraftConfig
from dspark.graft.data.answer_file import Answer
from dspark.graft.train.objective import Part
from dspark.graft.train.position_weights import by_confidence
from dspark.graft.train.seeds import generator_of
from tests.graft.test_trainer import MakeTrainer


def test_weights_of_a_block_of_four_are_the_closed_form() -> None:
    q = [0.5 * chance + 0.5 for chance in (0.9, 0.2, 0.6, 0.4)]
    reached = [q[0], q[0] * q[1], q[0] * q[1] * q[2], q[0] * q[1] * q[2] * q[3]]
    whole = [sum(reached[j:]) for j in range(4)]
    short = [q[0] + q[0] * q[1], q[0] * q[1]]  # what is not supervised adds nothing
    chances = torch.tensor([0.9, 0.2, 0.6, 0.4, 0.9, 0.2])
    blocks, positions = torch.tensor([1, 1, 1, 1, 0, 0]), torch.tensor([0, 1, 2, 3, 0, 1])
    entropies = (-chances.log()).requires_grad_()
    found = by_confidence(entropies, blocks, positions, 4, 0.5)
    assert found.tolist() == pytest.approx([*whole, *short])
    assert not found.requires_grad


def test_without_confidence_in_itself_a_head_weighs_by_place_alone() -> None:
    entropies, zeros = torch.full((3,), 1e9), torch.zeros(3, dtype=torch.long)
    found = by_confidence(entropies, zeros, torch.arange(3), 3, 0.5)
    assert found.tolist() == pytest.approx([0.875, 0.375, 0.125])


def test_the_gradient_does_not_depend_on_how_a_batch_is_divided(
    make_trainer: MakeTrainer, small_config: GraftConfig, answers: list[Answer]
) -> None:
    config = replace(small_config, position_weights="dpace")
    trainer = make_trainer(config)
    sampled = trainer.objective.sample(answers[:4], generator_of(0, "anchors", 0))
    total = trainer.objective.total_weight(sampled)

    def gradient(*parts: list[int]) -> torch.Tensor:
        trainer.head.zero_grad()
        for part in parts:
            loss, _ = trainer.objective(Part([sampled[i] for i in part], total, None))
            loss.backward()
        return torch.cat(
            [p.grad.flatten() for p in trainer.head.parameters() if p.grad is not None]
        )

    whole = gradient([0, 1, 2, 3])
    assert whole.abs().max() > 0
    for parts in ([[0], [1, 2, 3]], [[3, 1], [0, 2]]):
        torch.testing.assert_close(gradient(*parts), whole, rtol=1e-4, atol=1e-7)
