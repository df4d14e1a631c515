"""Collected under TRITON_INTERPRET=1 (see ../test_interpreted.py), or natively where a card is."""

import torch

from tests.kernels.interpreted.conftest import (
    IS_INTERPRETED,
    interpreter_noise,  # noqa: F401
    poisoned_outputs,  # noqa: F401
    quick_steady_interpreter,  # noqa: F401
)

if not IS_INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]
