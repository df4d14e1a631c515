"""Threads of our own: they wait spinning for a moment, then sleep; a program is one call each."""

import ctypes
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

from dspark_kernels.cpu.driver_text import LINE, STATE, STATE_WORDS
from dspark_kernels.cpu.library import Library

SPINS = 20_000  # turns of waiting before a thread sleeps, some hundred microseconds


class Pool:
    """Runs programs, one at a time, on `num_threads` threads, of which the caller is one."""

    def __init__(self, driver: Library, num_threads: int) -> None:
        self.num_threads = num_threads
        self._driver, addresses = driver, driver.addresses  # code lives as long as its threads
        word, pointer = ctypes.c_int64, ctypes.c_void_p
        self._run = _callable(addresses["run_program"], None, pointer, pointer, word, pointer, word)
        self._publish = _callable(addresses["publish"], None, pointer, pointer, word, pointer)
        self._await = _callable(addresses["await_job"], word, pointer, word, word)
        self._join = _callable(addresses["join_job"], None, pointer, word)
        self._memory = torch.zeros(STATE_WORDS + LINE // 8, dtype=torch.int64)
        self._state = -(-self._memory.data_ptr() // LINE) * LINE
        yield_field = self._state + LINE * STATE.index("yield")
        ctypes.c_int64.from_address(yield_field).value = _yield_address()
        self._one_program = threading.Lock()
        self._changed = threading.Condition()
        self._job, self._sleepers, self._is_closed = 0, 0, False
        self._threads = [
            threading.Thread(target=self._work, name="dspark-cpu", daemon=True)
            for _ in range(num_threads - 1)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, program: int, length: int, step: int) -> None:
        """Addresses of the tables of driver_text; returns when all is done."""
        with self._one_program:
            if self.num_threads > 1:
                with self._changed:
                    self._publish(self._state, program, length, step)
                    self._job += 1
                    if self._sleepers:
                        self._changed.notify_all()
            self._run(self._state, program, length, step, self.num_threads)

    def close(self) -> None:
        """Ends the threads, which must not outlive the code they run."""
        with self._one_program:
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        seen = 0
        while True:
            job = self._await(self._state, seen, SPINS)
            if job == seen:
                with self._changed:
                    self._sleepers += 1
                    while self._job == seen and not self._is_closed:
                        self._changed.wait()
                    self._sleepers -= 1
                    if self._job == seen:
                        return
                job = seen + 1
            self._join(self._state, self.num_threads)
            seen = job


def _callable(address: int, result: Any, *arguments: Any) -> Callable[..., Any]:
    """Called without Python's lock."""
    return ctypes.CFUNCTYPE(result, *arguments)(address)


def _yield_address() -> int:
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0
