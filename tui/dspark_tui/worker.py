"""The only place in the terminal that talks to the backend: threads that post messages."""

import threading

from textual import work
from textual.widget import Widget
from textual.worker import get_current_worker

from dspark.config import SamplingChoice, StopConfig
from dspark.events import Finished
from dspark_tui.backend import ChatBackend, ChatMessages
from dspark_tui.messages import (
    AnswerEvent,
    AnswerFailed,
    BackendReady,
    LoadFailed,
    LoadStep,
    as_dspark_error,
)


class BackendWorker(Widget):
    """Has no looks; lives in the screen so that its messages bubble up to it."""

    DEFAULT_CSS = "BackendWorker { display: none; }"

    def __init__(self, backend: ChatBackend) -> None:
        super().__init__()
        self.backend = backend
        self._one_at_a_time = threading.Lock()

    @work(thread=True, exclusive=True, exit_on_error=False, group="load")
    def load(self) -> None:
        worker = get_current_worker()
        try:
            for step in self.backend.load():
                if worker.is_cancelled:
                    return
                self.post_message(LoadStep(step))
            self.post_message(BackendReady(self.backend.info))
        except Exception as error:
            self.post_message(LoadFailed(as_dspark_error(error)))

    @work(thread=True, exclusive=True, exit_on_error=False, group="answer")
    def answer(
        self, turn: int, messages: ChatMessages, sampling: SamplingChoice, stop: StopConfig
    ) -> None:
        worker = get_current_worker()
        try:
            # A stopped answer runs to the end of its round before the next one may start.
            with self._one_at_a_time:
                for event in self.backend.answer(messages, sampling, stop):
                    self.post_message(AnswerEvent(turn, event))
                    # Repeated here: a stop may come before the backend has begun to listen.
                    if worker.is_cancelled and not isinstance(event, Finished):
                        self.backend.cancel()
        except Exception as error:
            self.post_message(AnswerFailed(turn, as_dspark_error(error)))

    def stop_answer(self) -> None:
        self.workers.cancel_group(self, "answer")
        self.backend.cancel()

    def on_unmount(self) -> None:
        self.backend.cancel()
