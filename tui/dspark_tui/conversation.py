"""What has been said so far. Only answered prompts are kept."""

from dataclasses import dataclass, field

Message = dict[str, str]


@dataclass
class Conversation:
    system: str = ""
    turns: list[Message] = field(default_factory=list)

    def with_prompt(self, prompt: str) -> list[Message]:
        """The messages to answer, should this prompt come next."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return [*opening, *self.turns, {"role": "user", "content": prompt}]

    def keep(self, prompt: str, answer: str) -> None:
        """A prompt without an answer is not kept: an empty turn says nothing to a model."""
        if not answer.strip():
            return
        self.turns += [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]

    def clear(self) -> None:
        self.turns.clear()

    @property
    def last_answer(self) -> str:
        return self.turns[-1]["content"] if self.turns else ""
