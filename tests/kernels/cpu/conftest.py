"""Every variant that this processor runs, on one thread and on two."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dspark_kernels.cpu.processor import variants
from dspark_kernels.cpu.runtime import Runtime


@pytest.fixture(scope="session")
def runtimes(compiled_kernels: Path) -> Iterator[list[Runtime]]:
    if not variants():
        pytest.skip("no kernels for this processor")
    with ExitStack() as closing:
        found = []
        for variant in variants().values():
            for num_threads in (1, 2):
                found.append(Runtime(variant, num_threads, compiled_kernels))
                closing.callback(found[-1].close)
        yield found
