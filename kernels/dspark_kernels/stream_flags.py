"""Flags in memory that a stream and the host both see: the stream asks and waits, the host answers.

A flag has two words: `asked`, which the stream sets to 1 once all before it is done, and
`answered`, for which it waits to become 1 before what follows begins. Values are constants, so that
a captured graph may hold them; who has seen a 1 writes the 0.
"""

import ctypes
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

import torch

POLL_SECONDS = 20e-6
DRIVER = "libcuda.so.1"
EQUAL = 1  # CU_STREAM_WAIT_VALUE_EQ


class FlagTimeout(RuntimeError):
    """Nobody answered in time, or what was asked was cancelled."""


class Stream(Protocol):
    """What the words of flags need of a stream. Nothing blocks its caller, unless the caller is
    the stream."""

    def write(self, word: int, value: int) -> None:
        """Once all before it is done."""

    def wait(self, word: int, value: int) -> None:
        """What follows begins once the word has that value."""


class StreamFlags:
    """`words` int32 [2 n], in memory that both see."""

    def __init__(self, words: torch.Tensor, stream: Stream) -> None:
        self._words, self._stream = words.numpy(), stream
        self._count, self.is_cancelled = len(words) // 2, False
        self.reset()

    def ask(self, flag: int) -> None:
        """On the stream."""
        self._stream.write(flag, 1)

    def await_answer(self, flag: int) -> None:
        """On the stream."""
        self._stream.wait(self._count + flag, 1)
        self._stream.write(self._count + flag, 0)

    def is_asked(self, flag: int, seconds: float) -> bool:
        """On the host: waits so long; False if nobody asked, or if it was cancelled meanwhile."""
        until = time.monotonic() + seconds
        while self._words[flag] != 1:
            if self.is_cancelled or time.monotonic() > until:
                return False
            time.sleep(POLL_SECONDS)
        self._words[flag] = 0
        return not self.is_cancelled

    def answer(self, flag: int) -> None:
        """On the host, once what was asked for is in its place."""
        self._words[self._count + flag] = 1

    def cancel(self) -> None:
        """On the host: no wait of the stream lasts longer, no question is answered. What the stream
        computes from then on is worthless; `reset` once it has ended."""
        self.is_cancelled = True
        self._words[self._count :] = 1

    def reset(self) -> None:
        """On the host, while nothing is under way."""
        self._words[:] = 0
        self.is_cancelled = False


class CallerStream:
    """The thread that calls is the stream: for a device whose operations return when done."""

    def __init__(self, words: torch.Tensor, patience: float) -> None:
        self._words, self._patience = words.numpy(), patience

    def write(self, word: int, value: int) -> None:
        self._words[word] = value

    def wait(self, word: int, value: int) -> None:
        """Raises FlagTimeout."""
        until = time.monotonic() + self._patience
        while self._words[word] != value:
            if time.monotonic() > until:
                raise FlagTimeout(f"no answer within {self._patience:g} s")
            time.sleep(POLL_SECONDS)


class ThreadStream:
    """A thread of its own is the stream: what is given to it runs in order."""

    def __init__(self, words: torch.Tensor, patience: float) -> None:
        self._own = CallerStream(words, patience)
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._work, daemon=True, name="stream")
        self._thread.start()

    def run(self, operation: Callable[[], None]) -> None:
        self._queue.put(operation)

    def write(self, word: int, value: int) -> None:
        self.run(lambda: self._own.write(word, value))

    def wait(self, word: int, value: int) -> None:
        self.run(lambda: self._own.wait(word, value))

    def close(self) -> None:
        """Once all that was given to it is done."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (operation := self._queue.get()) is not None:
            try:
                operation()
            except Exception as error:  # the stream goes on, as a card's would
                self.failures.append(error)


class CudaStream:
    """The current stream of a card, by the driver's operations on memory; `words` are pinned."""

    def __init__(self, words: torch.Tensor, device: torch.device) -> None:
        """Raises OSError or AttributeError where the driver has no such operations."""
        library = ctypes.CDLL(DRIVER)
        self._write = _operation(library, "cuStreamWriteValue32_v2", "cuStreamWriteValue32")
        self._wait = _operation(library, "cuStreamWaitValue32_v2", "cuStreamWaitValue32")
        self._first, self._device = words.data_ptr(), device

    def write(self, word: int, value: int) -> None:
        self._call(self._write, word, value, 0)

    def wait(self, word: int, value: int) -> None:
        self._call(self._wait, word, value, EQUAL)

    def _call(self, operation: Callable[..., int], word: int, value: int, flags: int) -> None:
        stream = torch.cuda.current_stream(self._device).cuda_stream
        found = operation(stream, self._first + 4 * word, value, flags)
        if found:
            raise RuntimeError(f"the driver refused an operation on memory: error {found}")


def _operation(library: ctypes.CDLL, *names: str) -> Callable[..., int]:
    """The first that the driver has; int(stream, address, value, flags)."""
    found = next((n for n in names if hasattr(library, n)), names[0])
    operation = getattr(library, found)
    operation.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint]
    operation.restype = ctypes.c_int
    call: Callable[..., int] = operation
    return call


def make_flags(count: int, device: torch.device, patience: float) -> StreamFlags:
    """Of a device's own stream."""
    is_card = device.type == "cuda"
    words = torch.zeros(2 * count, dtype=torch.int32, pin_memory=is_card)
    stream = CudaStream(words, device) if is_card else CallerStream(words, patience)
    return StreamFlags(words, stream)
