"""Our own threads: they spin for a moment, then sleep; a program is one call each."""

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from dspark_kernels.cpu.driver_text import INSIDE, LINE, MAX_OPS, MAX_THREADS, STATE, STATE_BYTES
from dspark_kernels.cpu.object_code import Library

SPINS = 20_000  # turns of waiting before a thread sleeps, some hundred microseconds
MAX_KEPT = 16  # tables of programs, before it is looked which of them a thread may still read


class Job(NamedTuple):
    """A program's table, and the address of its step: both as in driver_text."""

    table: torch.Tensor
    step: int


class Pool:
    """Runs programs, one at a time, on `num_threads` threads, of which the caller is one."""

    def __init__(self, driver: Library, num_threads: int) -> None:
        self.num_threads = min(num_threads, MAX_THREADS)
        self._driver, addresses = driver, driver.addresses  # code lives as long as its threads
        word, pointer = ctypes.c_int64, ctypes.c_void_p
        self._alone = _callable(addresses["run_alone"], None, pointer, word)
        self._run = _callable(addresses["run_jobs"], None, pointer, pointer, word)
        self._serve = _callable(addresses["serve_jobs"], word, pointer, word, word, word)
        self._memory = torch.zeros(STATE_BYTES + LINE, dtype=torch.uint8)
        self._state = -(-self._memory.data_ptr() // LINE) * LINE
        self._field("yield").value = _yield_address()
        self._field("where").value = _processor_address() or addresses["nowhere"]
        self._one_program = threading.Lock()
        self._changed = threading.Condition()
        self._job, self._sleepers, self._is_closed = 0, 0, False
        self._kept: dict[int, torch.Tensor] = {}
        self._threads = [
            threading.Thread(target=self._work, args=(index,), name="dspark-cpu", daemon=True)
            for index in range(self.num_threads - 1)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, jobs: Sequence[Job]) -> None:
        """One after another; returns when all is done."""
        words: list[int] = []
        for table, step in jobs:
            if len(table) > MAX_OPS:
                raise ValueError(f"a program of {len(table)} operations, {MAX_OPS} fit")
            words += (table.data_ptr(), len(table), step)
        memory = (ctypes.c_int64 * len(words))(*words)
        with self._one_program:
            if self.num_threads == 1:
                self._alone(memory, len(jobs))
                return
            self._keep(jobs)
            if self._sleepers:
                with self._changed:
                    self._changed.notify_all()
            self._run(self._state, memory, len(jobs))

    def close(self) -> None:
        """Ends the threads, which must not outlive the code they run."""
        with self._one_program:
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()
            for thread in self._threads:
                thread.join()

    def _keep(self, jobs: Sequence[Job]) -> None:
        """A thread that was put aside may look at the table of a job that is over."""
        if len(self._kept) >= MAX_KEPT:
            read = {self._job, *(self._inside(thread) for thread in range(len(self._threads)))}
            self._kept = {job: old for job, old in self._kept.items() if job in read}
        for table, _ in jobs:
            self._job += 1
            self._kept[self._job] = table

    def _field(self, name: str) -> ctypes.c_int64:
        return ctypes.c_int64.from_address(self._state + LINE * STATE.index(name))

    def _inside(self, thread: int) -> int:
        return ctypes.c_int64.from_address(self._state + INSIDE + LINE * thread).value

    def _work(self, thread: int) -> None:
        seen = 0
        while not self._is_closed:
            seen = self._serve(self._state, thread, seen, SPINS)
            if not self._leave_processor():
                self._sleep(seen)

    def _leave_processor(self) -> bool:
        """To another one than the caller's, on which the system may leave both for long."""
        caller = self._field("caller").value
        if sys.platform != "linux" or caller < 0 or caller not in os.sched_getaffinity(0):
            return False
        others = os.sched_getaffinity(os.getpid()) - {caller}
        if others:
            os.sched_setaffinity(0, others)
        return bool(others)

    def _sleep(self, seen: int) -> None:
        with self._changed:
            self._sleepers += 1
            while self._job == seen and not self._is_closed:
                self._changed.wait()
            self._sleepers -= 1


def _callable(address: int, result: Any, *arguments: Any) -> Callable[..., Any]:
    """Called without Python's lock."""
    return ctypes.CFUNCTYPE(result, *arguments)(address)


def _processor_address() -> int:
    """Of a function that tells the processor on which it runs; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return ctypes.cast(ctypes.CDLL(None).sched_getcpu, ctypes.c_void_p).value or 0


def _yield_address() -> int:
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0
