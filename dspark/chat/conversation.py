"""The conversation so far. Only answered prompts are kept, as far as the model reads them."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from dspark.chat.backend import ChatBackend, ChatSettings, ContextFullError
from dspark.events import Event

Message = dict[str, str]
EXCHANGE = 2  # messages: a prompt and its answer


@dataclass
class Conversation:
    """The model no longer reads the `num_left_out` oldest messages."""

    system: str = ""
    turns: list[Message] = field(default_factory=list)
    num_left_out: int = 0

    def with_prompt(self, prompt: str) -> list[Message]:
        """The messages to answer if this prompt comes next."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        read = self.turns[self.num_left_out :]
        return [*opening, *read, {"role": "user", "content": prompt}]

    def keep(self, prompt: str, answer: str) -> None:
        """A prompt without an answer is not kept: an empty turn has no use for a model."""
        if answer.strip():
            self.turns += [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            ]

    def leave_out(self, num_messages: int) -> None:
        self.num_left_out += num_messages

    @property
    def last_answer(self) -> str:
        return self.turns[-1]["content"] if self.turns else ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Leaves out that many more of the oldest messages, which did not fit in the context."""

    num_messages: int

    def __str__(self) -> str:
        count = self.num_messages // EXCHANGE
        oldest = (
            "the oldest prompt and its" if count == 1 else f"the {count} oldest prompts and their"
        )
        return f"The context is full: the model no longer sees {oldest} answer{'s' * (count > 1)}."


def ask(
    backend: ChatBackend, messages: list[Message], settings: ChatSettings
) -> Iterator[LeftOut | Event]:
    """Events of one answer. While the context is too small, the older half of the conversation is
    left out: large steps, because the model must read again everything after a gap."""
    while True:
        try:
            yield from backend.answer(messages, settings.sampling, settings.stop)
            return
        except ContextFullError:
            opening = int(messages[0]["role"] == "system")
            exchanges = (len(messages) - opening) // EXCHANGE
            if not exchanges:
                raise
            leaving = EXCHANGE * ((exchanges + 1) // 2)
            messages = [*messages[:opening], *messages[opening + leaving :]]
            yield LeftOut(leaving)
