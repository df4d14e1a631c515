"""Products in bfloat16: what they change, and when they are taken."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dspark.config import GraftConfig
from dspark.graft.target.frozen_target import FrozenTarget, load_frozen
from dspark.graft.train import precision
from dspark.graft.train.precision import product_precision
from dspark.graft.train.seeds import generator_of
from dspark.graft.train.trainer import Trainer

from .conftest import MakeTrainer

BF16_ROUNDING = 2.0**-8  # half of the last of 8 bits, twice, once for each factor
CPU = torch.device("cpu")


def _gradient(trainer: Trainer) -> torch.Tensor:
    trainer._backward(trainer._batch(0), generator_of(trainer.config.seed, "anchors", 0))
    gradients = [p.grad.flatten() for p in trainer.head.parameters() if p.grad is not None]
    return torch.cat(gradients)


def test_gradients_in_bfloat16_agree_within_its_rounding(
    make_trainer: MakeTrainer, small_config: GraftConfig
) -> None:
    """A gradient passes about twenty rounded products, forwards and backwards, whose errors add up
    like a random walk: sqrt(20) roundings, doubled for safety."""
    exact = _gradient(make_trainer(replace(small_config, precision="float32")))
    half = _gradient(make_trainer(replace(small_config, precision="bfloat16")))
    error = float((half - exact).norm() / exact.norm())
    assert 0 < error < 2 * 20**0.5 * BF16_ROUNDING


def test_taps_by_bfloat16_products_agree_within_its_rounding(
    target: FrozenTarget, tiny_llama_dir: Path
) -> None:
    """A layer rounds 17 times: 7 products, 2 norms, 2 rotations, 2 in attention, 2 between gate and
    product, 2 sums."""
    half = load_frozen(tiny_llama_dir, device=CPU, dtype=torch.float32, precision="bfloat16")
    half.tap(target.tap_layers)
    ids = tuple(range(3, 40))
    exact, rounded = target.view(ids), half.view(ids)
    bound = 2 * (17 * len(target.layers)) ** 0.5 * BF16_ROUNDING
    for name in ("taps", "hidden"):
        values = getattr(exact, name)
        error = (getattr(rounded, name) - values).norm() / values.norm()
        assert 0 < float(error) < bound, name


@pytest.mark.parametrize("has_units", [False, True])
def test_auto_is_what_the_processor_has(monkeypatch: pytest.MonkeyPatch, has_units: bool) -> None:
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda device: has_units)
    assert product_precision("auto", "cpu") == ("bfloat16" if has_units else "float32")
    assert product_precision("float32", "cpu") == "float32"
    assert product_precision("bfloat16", "cpu") == "bfloat16"
