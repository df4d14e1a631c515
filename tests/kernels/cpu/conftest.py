"""Every variant that this processor runs, on one thread and on two."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from dspark_kernels.cpu.processor import variants
from dspark_kernels.cpu.runtime import Runtime


@pytest.fixture(scope="session")
def runtimes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Runtime]]:
    if not variants():
        pytest.skip("no kernels for this processor")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # whoever compiles first compiles for all
        folder = folder.parent
    with ExitStack() as closing:
        found = []
        for variant in variants().values():
            for num_threads in (1, 2):
                found.append(Runtime(variant, num_threads, folder / "kernels"))
                closing.callback(found[-1].close)
        yield found
