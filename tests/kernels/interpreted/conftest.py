"""Collected under TRITON_INTERPRET=1 (see ../test_interpreter.py), or natively where a card is."""

import os
import warnings

import pytest
import torch

from benchmarks.gpu_parts.interpreter import patch_once_a_launch, patch_products

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not IS_INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if IS_INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def quick_steady_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if IS_INTERPRETED:
        patch_once_a_launch(monkeypatch.setattr)
        patch_products(monkeypatch.setattr)


@pytest.fixture(autouse=True)
def interpreter_noise():
    """NumPy, under the interpreter, warns of infinities that kernels reckon with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN, or a number that no test expects."""

    def poison(make):
        def make_poisoned(*args, **kwargs):
            fresh = make(*args, **kwargs)
            return fresh.fill_(float("nan") if fresh.is_floating_point() else 99)

        return make_poisoned

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


@pytest.fixture
def backwards(monkeypatch: pytest.MonkeyPatch):
    """Makes programs run from the last to the first; a card has its own order each time."""
    if not IS_INTERPRETED:
        return lambda: None
    from triton.runtime.interpreter import InterpreterBuilder

    forwards = InterpreterBuilder.set_grid_idx

    def set_grid_idx(self, *index):
        forwards(self, *(n - 1 - i for n, i in zip(self.grid_dim, index, strict=True)))

    return lambda: monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", set_grid_idx)
