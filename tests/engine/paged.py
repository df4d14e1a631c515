"""Caches as where Triton runs, on any machine; the operations on them stay torch's."""

import pytest

from dspark.kvcache import caches
from dspark_kernels.backend import Backend


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "choose_backend", lambda device: Backend("triton", "a test"))
