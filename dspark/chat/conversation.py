"""What has been said so far: turns with all their events, of which the model reads the texts."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from dspark.chat.ask import LeftOut, Message
from dspark.chat.backend import ChatEvent
from dspark.chat.running_stats import NOTHING_YET, add_event
from dspark.events import DecodeStats, Finished, Piece, Round, TextDelta


@dataclass
class Turn:
    """A prompt and what has come of it so far. Whatever is shown or counted is a view of `events`;
    `stats` are their sums. The user has written `opening`, the beginning of the answer; `saved_id`
    is the turn's number in the store."""

    prompt: str
    events: list[ChatEvent] = field(default_factory=list)
    stats: DecodeStats = NOTHING_YET
    opening: str = ""
    saved_id: int | None = None

    def add(self, event: ChatEvent) -> None:
        self.events.append(event)
        self.stats = add_event(self.stats, event)

    @property
    def finished(self) -> Finished | None:
        last = self.events[-1] if self.events else None
        return last if isinstance(last, Finished) else None

    @property
    def text(self) -> str:
        """The answer alone, without thinking, as far as it has come."""
        return self.opening + self.own_text

    @property
    def own_text(self) -> str:
        """What the model has written of it."""
        if self.finished is not None:
            return self.finished.text
        return "".join(piece.text for piece in self.pieces if not piece.is_thinking)

    @property
    def thinking(self) -> str:
        if self.finished is not None:
            return self.finished.thinking
        return "".join(piece.text for piece in self.pieces if piece.is_thinking)

    @property
    def pieces(self) -> Iterator[Piece]:
        for event in self.events:
            if not isinstance(event, Finished):
                yield from event.pieces

    @property
    def context_tokens(self) -> int | None:
        """How much of the context is used; a server's deltas are counted. None until it is told."""
        match self.events:
            case [*_, Round() as last]:
                return last.context_tokens
            case [*_, TextDelta()]:
                return len(self.events)
            case [*_, Finished() as last] if last.stats.new_tokens:
                return last.stats.prompt_tokens + last.stats.new_tokens
        return None

    @property
    def messages(self) -> list[Message]:
        return [
            {"role": "user", "content": self.prompt},
            {"role": "assistant", "content": self.text},
        ]


@dataclass
class Conversation:
    """Only answered prompts are kept. `num_left_out` of the turns, the oldest, are no longer read
    by the model. `saved_id` is the chat's number in the store, once there is something to keep."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    num_left_out: int = 0
    title: str = ""
    saved_id: int | None = None

    def with_prompt(self, prompt: str, opening: str = "") -> list[Message]:
        """The messages to answer if this prompt comes next; an answer that has an opening is to be
        continued."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        read = [each for turn in self.turns[self.num_left_out :] for each in turn.messages]
        begun = [{"role": "assistant", "content": opening}] if opening else []
        return [*system, *read, {"role": "user", "content": prompt}, *begun]

    def take(self, turn: Turn, event: LeftOut | ChatEvent) -> None:
        """What came of a turn asked here. An answer without text is not kept: it says nothing to
        a model."""
        if isinstance(event, LeftOut):
            self.num_left_out += event.num_turns
            return
        turn.add(event)
        if isinstance(event, Finished) and turn.text.strip():
            self.turns.append(turn)

    @property
    def last_answer(self) -> str:
        return self.turns[-1].text if self.turns else ""
