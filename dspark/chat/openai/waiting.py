"""Runs coroutines from a thread, with cancellation from another thread."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

Result = TypeVar("Result")


class Waiting:
    """A context manager: at its end nothing is pending and the loop is closed."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._task: asyncio.Task[Any] | None = None
        self._is_cancelled = False

    def __enter__(self) -> "Waiting":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._runner.close()

    def until(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """The coroutine's result. Raises CancelledError if another thread cancelled it."""
        loop = self._runner.get_loop()
        self._task = task = loop.create_task(coroutine)
        if self._is_cancelled:
            task.cancel()
        return loop.run_until_complete(task)

    def cancel(self) -> None:
        """From any thread, at any time; also cancels later waits."""
        self._is_cancelled = True
        if self._task is not None:
            with suppress(RuntimeError):  # the wait has just ended
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)
