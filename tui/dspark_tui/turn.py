"""A turn on the screen."""

from dataclasses import dataclass

from dspark.chat.conversation import Conversation, Turn
from dspark.chat.token_spans import marks_of
from dspark.events import Finished, PrefillProgress, Round, TextDelta
from dspark_tui import wording
from dspark_tui.widgets.answer import Answer
from dspark_tui.widgets.transcript import UserMessage


@dataclass(frozen=True, slots=True)
class ShownTurn:
    """The conversation is that in which it was asked, whichever is shown now."""

    number: int
    turn: Turn
    question: UserMessage
    answer: Answer
    conversation: Conversation

    @property
    def prompt(self) -> str:
        return self.turn.prompt

    def write(self, event: PrefillProgress | Round | TextDelta) -> None:
        if isinstance(event, PrefillProgress):
            done, total = f"{event.done:,}", f"{event.total:,}"
            self.answer.note = f"reading the prompt, {done} of {total} tokens"
        if event.pieces or isinstance(event, Round):
            self.answer.note = ""
            self.answer.add(marks_of(event))

    def end(self, event: Finished, has_drafter: bool, refused: str) -> None:
        self.answer.add(marks_of(event))
        self.answer.note = wording.end_note(event, has_drafter, refused)
