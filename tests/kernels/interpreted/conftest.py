"""Collected under TRITON_INTERPRET=1 (see ../test_interpreter.py), or natively where a card is."""

import os
import warnings
from types import SimpleNamespace

import pytest
import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not IS_INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if IS_INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def patched_once_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter (3.9) patches the language anew for every function that a kernel calls."""
    if not IS_INTERPRETED:
        return
    from triton.runtime import interpreter

    patch_lang, tl = interpreter._patch_lang, interpreter.tl
    everywhere = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    monkeypatch.setattr(interpreter, "_patch_lang", lambda fn: patch_lang(everywhere))
    call = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)


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
