"""The runtime of this process's CPU kernels: a variant, compiled libraries and threads."""

import os
import threading
import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from dspark_kernels.cpu.driver_text import HEADER_WORDS, OP_WORDS
from dspark_kernels.cpu.object_code import Library, is_kept, load_library
from dspark_kernels.cpu.pool import Job, Pool
from dspark_kernels.cpu.processor import CpuBackend, Variant, choose_cpu_backend
from dspark_kernels.cpu.sources import library_of, source


class Op(NamedTuple):
    """One operation of a program: `units` + `units_by_row` · rows units of work, of which a thread
    takes `fewest` or more at once."""

    function: str
    units: int
    units_by_row: int
    words: Sequence["torch.Tensor | int"]
    fewest: int = 1


class Program:
    """Operations that run one after another, in memory with fixed addresses."""

    def __init__(self, runtime: "Runtime", ops: Sequence[Op]) -> None:
        self._runtime = runtime
        self._kept = [word for op in ops for word in op.words if isinstance(word, torch.Tensor)]
        self._table = torch.tensor([_row(runtime, op) for op in ops], dtype=torch.int64).reshape(
            -1, OP_WORDS
        )

    def point(self, op: int, word: int, tensor: torch.Tensor) -> None:
        """Replaces a tensor for the calls that follow; the caller keeps it."""
        self._table[op, HEADER_WORDS + word] = tensor.data_ptr()

    def job(self, step: int) -> Job:
        """With a step at this address, for Runtime.run_jobs."""
        return Job(self._table, step)

    def __call__(self, step: torch.Tensor) -> None:
        """step int64: the number of rows, then the words of a pass that operations read."""
        self._runtime.run_jobs(self.job(step.data_ptr()))


class Runtime:
    """Compiles each library once. `close` ends its threads; so does garbage collection."""

    def __init__(self, variant: Variant, num_threads: int, cache_folder: Path | None) -> None:
        self.variant, self._cache_folder = variant, cache_folder
        self._libraries: dict[str, Library] = {}
        self._addresses: dict[str, int] = {}
        self._lock = threading.RLock()
        self.address("run_alone")
        self.pool = Pool(self._libraries["driver"], num_threads)
        self.close = weakref.finalize(self, self.pool.close)  # at the end of the process, too

    def address(self, function: str) -> int:
        if function not in self._addresses:
            self._addresses[function] = self._load(function)
        return self._addresses[function]

    def _load(self, function: str) -> int:
        name = library_of(function)
        with self._lock:
            if name not in self._libraries:
                made = source(name, self.variant)
                self._libraries[name] = load_library(
                    f"{name}-{self.variant.name}",
                    made.write,
                    made.exports,
                    self.variant,
                    self._cache_folder,
                )
            return self._libraries[name].addresses[function]

    def missing(self, functions: Collection[str]) -> list[str]:
        """Those that `address` would have to compile, one of each library."""
        found = {library_of(function): function for function in functions}
        return [function for name, function in found.items() if not self._is_here(name)]

    def _is_here(self, name: str) -> bool:
        if name in self._libraries or self._cache_folder is None:
            return name in self._libraries
        text = source(name, self.variant).write()
        return is_kept(f"{name}-{self.variant.name}", text, self.variant, self._cache_folder)

    def run_jobs(self, *jobs: Job) -> None:
        """One after another, in one call."""
        self.pool.run(jobs)

    def run(self, ops: Sequence[Op], num_rows: int, step: torch.Tensor | None = None) -> None:
        """Once; `step` as in step_words, or the number of rows alone."""
        Program(self, ops)(torch.tensor([num_rows]) if step is None else step)


def _row(runtime: Runtime, op: Op) -> list[int]:
    words = [w.data_ptr() if isinstance(w, torch.Tensor) else w for w in op.words]
    sizes = (op.units, op.units_by_row, op.fewest, runtime.pool.num_threads)
    header = [runtime.address(op.function), *sizes]
    return header + words + [0] * (OP_WORDS - HEADER_WORDS - len(words))


class _Chosen(threading.local):
    runtime: Runtime | None = None


_chosen = _Chosen()
_cache_folder: Path | None = None
_made: dict[tuple[Variant, int, Path | None, int], Runtime] = {}


def keep_compiled(folder: Path) -> None:
    """Sets the folder of compiled kernels."""
    global _cache_folder
    _cache_folder = folder


def runtime_of(variant: Variant, num_threads: int) -> Runtime:
    """One for each process: a fork has no threads."""
    key = (variant, num_threads, _cache_folder, os.getpid())
    if key not in _made:
        _made[key] = Runtime(variant, num_threads, _cache_folder)
    return _made[key]


def running() -> Runtime | None:
    """As current, but None as well if nothing of this process needed one so far."""
    key = (torch.get_num_threads(), _cache_folder, os.getpid())
    found = (runtime for (_, *rest), runtime in _made.items() if tuple(rest) == key)
    return _chosen.runtime or next(found, None)


def current() -> Runtime | None:
    """None if plain torch runs instead."""
    if _chosen.runtime is not None:
        return _chosen.runtime
    variant = usable_backend().variant
    return None if variant is None else runtime_of(variant, torch.get_num_threads())


def usable_backend() -> CpuBackend:
    """The result of choose_cpu_backend after compiling: for `dspark doctor`."""
    backend = choose_cpu_backend()
    if backend.variant is None:
        return backend
    failure = _failure(backend.variant, torch.get_num_threads())
    return backend if failure is None else CpuBackend(None, failure)


@lru_cache
def _failure(variant: Variant, num_threads: int) -> str | None:
    try:
        runtime_of(variant, num_threads)
    except (RuntimeError, OSError) as error:  # LLVM's errors are the former
        return f"{variant.name} kernels cannot be built here ({error})"
    return None


@contextmanager
def using(runtime: Runtime) -> Iterator[None]:
    """Inside, operations of this thread run by `runtime`."""
    before, _chosen.runtime = _chosen.runtime, runtime
    try:
        yield
    finally:
        _chosen.runtime = before
