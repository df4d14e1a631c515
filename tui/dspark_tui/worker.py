"""The only module of the screen that talks to the backend: threads that post messages.

They are daemons, so that quitting does not wait for them.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context

from textual.message import Message
from textual.widget import Widget

from dspark.chat.ask import PendingAnswer
from dspark.chat.backend import ChatBackend
from dspark_tui.messages import (
    AnswerEvent,
    AnswerFailed,
    BackendReady,
    LoadFailed,
    LoadStep,
    as_dspark_error,
)


class BackendWorker(Widget):
    """Invisible; part of the screen so that its messages bubble up to it."""

    DEFAULT_CSS = "BackendWorker { display: none; }"

    def __init__(self, backend: ChatBackend) -> None:
        super().__init__()
        self.backend = backend
        self._one_at_a_time = threading.Lock()
        self._pending: PendingAnswer | None = None

    def load(self) -> None:
        self._start(self._load)

    def answer(self, turn: int, pending: PendingAnswer) -> None:
        self._pending = pending
        self._start(lambda: self._answer(turn, pending))

    def stop_answer(self) -> None:
        if self._pending is not None:
            self._pending.cancel()

    @property
    def is_stopping(self) -> bool:
        return self._pending is not None and self._pending.is_cancelled

    def on_unmount(self) -> None:
        self.backend.cancel()

    def _start(self, work: Callable[[], None]) -> None:
        """Runs in the caller's context, which has the app."""
        threading.Thread(target=copy_context().run, args=(work,), daemon=True).start()

    def _load(self) -> None:
        try:
            for step in self.backend.load():
                self._tell(LoadStep(step))
            self._tell(BackendReady(self.backend.info))
        except Exception as error:
            self._tell(LoadFailed(as_dspark_error(error)))

    def _answer(self, turn: int, pending: PendingAnswer) -> None:
        try:
            # A stopped answer runs to the end of its round before the next one may start.
            with self._one_at_a_time:
                for event in pending:
                    self._tell(AnswerEvent(turn, event))
        except Exception as error:
            self._tell(AnswerFailed(turn, as_dspark_error(error)))

    def _tell(self, message: Message) -> None:
        with suppress(RuntimeError):  # the app has just ended, and its loop is closed
            self.post_message(message)
