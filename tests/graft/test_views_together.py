"""Taps that do not fit into memory: those of some steps, in passes over texts of like length."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dspark.config import GraftConfig
from dspark.graft.target import frozen_target
from dspark.graft.target.frozen_target import FrozenTarget, load_frozen
from dspark.graft.train import checkpoint, trainer

from .conftest import MakeTrainer

CPU = torch.device("cpu")
TEXTS = [tuple(range(3, 3 + length)) for length in (9, 31, 4, 17, 30, 4)]


@pytest.fixture
def small(tiny_llama_dir: Path) -> FrozenTarget:
    target = load_frozen(tiny_llama_dir, device=CPU, dtype=torch.float32)
    target.tap((0, 1))
    assert not target.fit(1)
    return target


def test_views_are_those_of_each_text_alone(
    small: FrozenTarget, target: FrozenTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To one rounding of bf16: sums of float32 in another order, then rounded."""
    monkeypatch.setattr(frozen_target, "TOKENS_AT_ONCE", 40)
    shapes: list[tuple[int, int]] = []
    small.model.base_model.register_forward_pre_hook(
        lambda _model, _args, given: shapes.append(tuple(given["input_ids"].shape)),
        with_kwargs=True,
    )
    small.read(TEXTS)
    assert shapes == [(2, 9), (1, 17), (1, 30), (1, 31)], "padding costs more than a pass"
    for text in TEXTS:
        for alone, read in zip(target.view(text), small.view(text), strict=True):
            torch.testing.assert_close(read, alone, rtol=2**-7, atol=1e-5)
    assert len(shapes) == 4, "a view was made twice"


def test_a_run_goes_on_with_the_same_weights(
    small: FrozenTarget,
    make_trainer: MakeTrainer,
    small_config: GraftConfig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """From a step in the middle of those whose views are made together."""
    monkeypatch.setattr(trainer, "SEQUENCES_AHEAD", 3 * small_config.batch_size)
    made: list[int] = []
    forward = small._forward

    def watched(sequences: Sequence[tuple[int, ...]]) -> list[frozen_target.TargetView]:
        made.append(len(sequences))
        return forward(sequences)

    monkeypatch.setattr(small, "_forward", watched)

    def begin() -> trainer.Trainer:
        begun = make_trainer(replace(small_config, steps=6))
        begun.target = begun.objective.target = small
        return begun

    whole, first, second = begin(), begin(), begin()
    for _ in whole.steps():
        pass
    assert sum(made) == 6 * small_config.batch_size
    for _ in range(4):
        first.step()
    checkpoint.save(tmp_path / "state.pt", first, "run")
    checkpoint.load(tmp_path / "state.pt", second, "run")
    for _ in second.steps():
        pass
    expected = whole.head.state_dict()
    for name, tensor in second.head.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_what_is_kept_is_made_in_company(
    target: FrozenTarget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_llama_dir: Path
) -> None:
    """In fewer passes, with the same bits whichever is asked for first, in memory and on disk; and
    not again if only some are left."""
    monkeypatch.setattr(frozen_target, "TOKENS_AT_ONCE", 40)

    def views(order: Sequence[tuple[int, ...]], disk: Path | None) -> list[torch.Tensor]:
        fresh = load_frozen(tiny_llama_dir, device=CPU, dtype=torch.float32, memory_bytes=1 << 20)
        fresh.tap(target.tap_layers)
        if disk is not None:
            fresh._bytes_left = 0
            fresh.keep_on_disk(disk, tiny_llama_dir, TEXTS)
        passes = []
        fresh.model.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
        fresh.keep_together(TEXTS)
        found = {text: fresh.view(text) for text in order}
        assert len(passes) == num_passes
        return [tensor for text in TEXTS for tensor in found[text]]

    num_passes = 4  # of five different texts
    expected = views(TEXTS, None)
    disk = tmp_path / "taps"
    for order, folder in ((TEXTS[::-1], None), (TEXTS, disk), (TEXTS[::-1], tmp_path / "other")):
        assert all(map(torch.equal, views(order, folder), expected))
    num_passes = 0
    assert all(map(torch.equal, views(TEXTS, disk), expected))
    num_passes = 1
    next(disk.glob("*/*.safetensors")).unlink()
    assert all(map(torch.equal, views(TEXTS, disk), expected))
