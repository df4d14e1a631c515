"""Collected under TRITON_INTERPRET=1 (see ../test_interpreted.py), or natively where a card is."""

import os
import warnings

import pytest
import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not IS_INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def interpreter_noise():
    """NumPy, under the interpreter, warns of infinities that kernels reckon with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
