"""The only module of the screen that talks to the backend: threads that post messages.

They are daemons, so that quitting does not wait for them. Events of an answer are handed on once a
frame, however fast they come.
"""

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import copy_context
from itertools import groupby
from time import monotonic, thread_time

from textual import on
from textual.message import Message
from textual.widget import Widget

from dspark.chat.ask import LeftOut, PendingAnswer
from dspark.chat.backend import ChatBackend, ChatEvent
from dspark_tui.messages import (
    AnswerEvents,
    AnswerFailed,
    BackendReady,
    LoadFailed,
    LoadStep,
    as_dspark_error,
)
from dspark_tui.race_run import RaceRun

FRAME_SECONDS, LONGEST_FRAME_SECONDS = 1 / 30, 0.07
SHARE = 0.2  # of a core, for the frames of an answer: keys and the decoder come first
AnyEvent = LeftOut | ChatEvent


class Woken(Message, bubble=False):
    """There is something to hand on."""


class BackendWorker(Widget):
    """Invisible; part of the screen so that its messages bubble up to it."""

    DEFAULT_CSS = "BackendWorker { display: none; }"

    def __init__(self, backend: ChatBackend) -> None:
        super().__init__()
        self.backend = backend
        self._one_at_a_time = threading.Lock()
        self._pending: PendingAnswer | None = None
        self._coming: list[tuple[int, AnyEvent | Exception]] = []
        self._coming_lock = threading.Lock()
        self._handed_on = 0.0
        self._worked = 0.0
        self._frame_work = 0.0  # the event loop's work since the frame before

    def load(self) -> None:
        self._start(self._load)

    def answer(
        self, turn: int, pending: PendingAnswer, events: Iterable[AnyEvent] | None = None
    ) -> None:
        """`events` are those of `pending`, on their way through somebody who writes them down."""
        self._pending = pending
        self._start(lambda: self._answer(turn, pending if events is None else events))

    def race(self, run: RaceRun) -> None:
        self._start(lambda: self._race(run))

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
        backend = self.backend
        try:
            for step in backend.load():
                self._tell(LoadStep(step))
            self._tell(BackendReady(backend.info))
        except Exception as error:
            self._tell(LoadFailed(as_dspark_error(error)))

    def _answer(self, turn: int, events: Iterable[AnyEvent]) -> None:
        try:
            # A stopped answer runs to the end of its round before the next one may start.
            with self._one_at_a_time:
                for event in events:
                    self._collect(turn, event)
        except Exception as error:
            self._collect(turn, error)

    def _race(self, run: RaceRun) -> None:
        with self._one_at_a_time:
            run.run()

    def _collect(self, turn: int, event: AnyEvent | Exception) -> None:
        with self._coming_lock:
            self._coming.append((turn, event))
            is_first = len(self._coming) == 1
        if is_first:
            self._tell(Woken())

    @on(Woken)
    def _hand_on_soon(self) -> None:
        frame = min(max(FRAME_SECONDS, self._frame_work / SHARE), LONGEST_FRAME_SECONDS)
        wait = self._handed_on + frame - monotonic()
        if wait > 0:
            self.set_timer(wait, self._hand_on)
        else:
            self._hand_on()

    def _hand_on(self) -> None:
        with self._coming_lock:
            coming, self._coming = self._coming, []
        self._handed_on, before, self._worked = monotonic(), self._worked, thread_time()
        self._frame_work = self._worked - before
        for turn, group in groupby(coming, key=lambda each: each[0]):
            told = [event for _, event in group]
            events = tuple(event for event in told if not isinstance(event, Exception))
            if events:
                self._tell(AnswerEvents(turn, events))
            for error in told:
                if isinstance(error, Exception):
                    self._tell(AnswerFailed(turn, as_dspark_error(error)))

    def _tell(self, message: Message) -> None:
        with suppress(RuntimeError):  # the app has just ended, and its loop is closed
            self.post_message(message)
