"""Asking a backend, from a front end's first thought of it to the last event."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from dspark.chat.backend import ChatBackend, ChatEvent, ChatSettings, ContextFullError
from dspark.chat.running_stats import NOTHING_YET
from dspark.events import Finished

Message = dict[str, str]
MESSAGES_PER_TURN = 2  # a prompt and its answer


@dataclass(frozen=True, slots=True)
class LeftOut:
    """So many more of the oldest turns did not fit into the context."""

    num_turns: int

    def __str__(self) -> str:
        count = self.num_turns
        oldest = (
            "the oldest prompt and its" if count == 1 else f"the {count} oldest prompts and their"
        )
        return f"The context is full: the model no longer sees {oldest} answer{'s' * (count > 1)}."


@dataclass(frozen=True)
class PendingAnswer:
    """One answer, which iterating begins. A `cancel` holds, whenever it comes."""

    backend: ChatBackend
    messages: list[Message]
    settings: ChatSettings
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """From any thread."""
        self._cancelled.set()
        self.backend.cancel()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def __iter__(self) -> Iterator[LeftOut | ChatEvent]:
        """While the context is too small, the older half of what was said before is left out:
        large steps, because the model reads anew all that comes behind a gap. A prompt that does
        not fit alone leaves out nothing."""
        messages, left_out = self.messages, 0
        if self.settings.schedule is not None:
            self.backend.use_schedule(self.settings.schedule)
        self.backend.tell_probabilities(self.settings.probabilities)
        self.backend.use_effort(self.settings.effort)
        while not self.is_cancelled:
            try:
                events = self.backend.answer(messages, self.settings.sampling, self.settings.stop)
                if self.is_cancelled:  # perhaps before the backend knew what there was to cancel
                    self.backend.cancel()
                for event in events:
                    if left_out:
                        yield LeftOut(left_out)
                        left_out = 0
                    yield event
                return
            except ContextFullError:
                opening = int(messages[0]["role"] == "system")
                turns = (len(messages) - opening - 1) // MESSAGES_PER_TURN
                if not turns:
                    raise
                leaving = (turns + 1) // 2
                rest = messages[opening + MESSAGES_PER_TURN * leaving :]
                messages = [*messages[:opening], *rest]
                left_out += leaving
        yield Finished(0, "cancelled", (), "", NOTHING_YET)
