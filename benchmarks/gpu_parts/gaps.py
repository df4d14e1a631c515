"""Microseconds from one node of a CUDA graph to the next that depends on it.

With dependent launch a kernel starts while the one before it ends (sm_90 and later).
"""

from collections.abc import Callable, Iterator

import torch

from dspark_kernels.backend import HAS_TRITON, jit, tl
from gpu_parts.setting import Record, Setting, attempt
from gpu_parts.stopwatch import Arm, Stopwatch

if HAS_TRITON:
    from triton.language.extra import cuda as cuda_language
else:
    cuda_language = None

NODES = 300
PROGRAMS = (1, 16, 132, 528)
BLOCK = 256


def time_gaps(setting: Setting) -> Iterator[Record]:
    """Nodes that add one to numbers in the L2: their own work is next to nothing."""
    if not HAS_TRITON:
        yield {"skipped": "Triton is not installed"}
        return
    stopwatch = Stopwatch(setting)
    programs = PROGRAMS[: 1 if setting.is_tiny else None]
    for count in programs:
        values = torch.zeros(count * BLOCK, device=setting.device)
        yield gap(setting, stopwatch, f"{count} programs", lambda c=count, v=values: add(c, v))
        if setting.device.type == "cuda":  # the interpreter knows no dependent launch
            launch = lambda c=count, v=values: add_dependent(c, v)  # noqa: E731
            yield gap(setting, stopwatch, f"{count} programs, dependent launch", launch)
    values = torch.zeros(4096, device=setting.device)
    yield gap(setting, stopwatch, "torch's own add", lambda: values.add_(1))


def gap(setting: Setting, stopwatch: Stopwatch, name: str, launch: Callable[[], object]) -> Record:
    nodes = 2 if setting.is_tiny else NODES

    def chain() -> None:
        for _ in range(nodes):
            launch()

    return attempt({"node": name}, lambda: stopwatch.measure({name: Arm(chain, nodes)})[name])


def add(count: int, values: torch.Tensor) -> None:
    add_kernel[(count,)](values, BLOCK=BLOCK)


def add_dependent(count: int, values: torch.Tensor) -> None:
    add_dependent_kernel[(count,)](values, BLOCK=BLOCK, launch_pdl=True)


@jit
def add_kernel(values: tl.tensor, BLOCK: tl.constexpr) -> None:
    at = values + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(at, tl.load(at) + 1.0)


@jit
def add_dependent_kernel(values: tl.tensor, BLOCK: tl.constexpr) -> None:
    at = values + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    cuda_language.gdc_wait()
    added = tl.load(at) + 1.0
    cuda_language.gdc_launch_dependents()
    tl.store(at, added)
