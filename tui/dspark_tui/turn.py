"""A turn on the screen."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from dspark.chat.conversation import Conversation, Turn
from dspark.chat.repetition import Repetition
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
    repetition: Repetition = field(default_factory=Repetition)

    @property
    def prompt(self) -> str:
        return self.turn.prompt

    def write(self, events: Iterable[PrefillProgress | Round | TextDelta]) -> None:
        """What came within a frame is drawn once."""
        marks = []
        for event in events:
            if isinstance(event, PrefillProgress):
                done, total = f"{event.done:,}", f"{event.total:,}"
                self.answer.note = f"reading the prompt, {done} of {total} tokens"
            if event.pieces or isinstance(event, Round):
                self.answer.note = ""
                marks += marks_of(event)
        if marks:
            self.answer.add(marks)
            self.repetition.add("".join(mark.text for mark in marks if mark.kind != "rejected"))
            if self.repetition.is_looping:
                self.answer.note = wording.loop_note()

    def end(self, event: Finished, has_drafter: bool, refused: str) -> None:
        if marks := marks_of(event):
            self.answer.add(marks)
        self.answer.note = wording.end_note(event, has_drafter, refused)
        self.answer.end()
