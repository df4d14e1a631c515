"""A backend without a model: it gives the answers of a trace again."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from time import monotonic

from dspark.chat.backend import ChatEvent, ChatMessages, OpenRace
from dspark.chat.conversation import Turn
from dspark.chat.trace import TracedAnswer
from dspark.config import Effort, SamplingChoice, ScheduleConfig, StopConfig
from dspark.errors import InputError
from dspark.events import FetchProgress, Finished, LoadProgress, Round


class ReplayBackend:
    """Answers the traced prompts in their order. `speed` 1 keeps the time that they took, infinity
    takes none; with `steps`, each round waits for a call of `step`."""

    def __init__(
        self, answers: Sequence[TracedAnswer], *, speed: float = 1.0, steps: bool = False
    ) -> None:
        self.info = answers[0].info
        self.name = self.info.name
        self.prompts = tuple(each.prompt for each in answers)
        self.steps = steps
        self._coming = deque(answers)
        self._speed = speed
        self._cancelled = threading.Event()
        self._granted = threading.Semaphore(0)

    def load(self) -> Iterator[FetchProgress | LoadProgress]:
        yield from ()

    def answer(
        self, messages: ChatMessages, sampling: SamplingChoice, stop: StopConfig
    ) -> Iterator[ChatEvent]:
        if not self._coming or messages[-1]["content"] != self._coming[0].prompt:
            raise InputError("a replay has no model to answer with", "dspark chat starts one.")
        self._cancelled.clear()
        return self._replayed(self._coming.popleft())

    def use_schedule(self, schedule: ScheduleConfig) -> None:
        """What is replayed was scheduled when it was written."""

    def race(
        self, messages: ChatMessages, sampling: SamplingChoice, stop: StopConfig, against: str
    ) -> OpenRace:
        raise InputError("a replay has no model to race", "dspark race runs one.")

    def tell_probabilities(self, tells: bool) -> None:
        """So it was."""

    def use_effort(self, effort: Effort | None) -> None:
        """And thought about."""

    def step(self) -> None:
        """The next round may come."""
        self._granted.release()

    def cancel(self) -> None:
        self._cancelled.set()
        self._granted.release()

    def close(self) -> None:
        self.cancel()

    def _replayed(self, traced: TracedAnswer) -> Iterator[ChatEvent]:
        start, so_far = monotonic(), Turn(traced.prompt)
        for at, event in traced.events:
            if isinstance(event, Finished):
                yield event
                return
            self._wait(event, start + at / self._speed)
            if self._cancelled.is_set():
                break
            so_far.add(event)
            yield event
        yield Finished(0, "cancelled", (), so_far.text, so_far.stats)

    def _wait(self, event: ChatEvent, until: float) -> None:
        if not self.steps:
            self._cancelled.wait(max(0.0, until - monotonic()))
        elif isinstance(event, Round):
            self._granted.acquire()
