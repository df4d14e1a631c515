"""One prompt on its way to an answer."""

from dataclasses import dataclass

from dspark.chat.conversation import Conversation
from dspark.events import Finished, PrefillProgress, Round
from dspark_tui import wording
from dspark_tui.token_spans import marks_of
from dspark_tui.widgets.answer import Answer
from dspark_tui.widgets.transcript import UserMessage


@dataclass(frozen=True, slots=True)
class Turn:
    """`conversation` is the one it was asked in, whichever is shown now."""

    number: int
    prompt: str
    question: UserMessage
    answer: Answer
    conversation: Conversation

    def write(self, event: PrefillProgress | Round) -> None:
        if isinstance(event, PrefillProgress):
            done, total = f"{event.done:,}", f"{event.total:,}"
            self.answer.note = f"reading the prompt, {done} of {total} tokens"
        if event.pieces or isinstance(event, Round):
            self.answer.note = ""
            self.answer.add(marks_of(event))

    def end(self, event: Finished, has_drafter: bool, refused: str) -> None:
        self.answer.add(marks_of(event))
        self.answer.note = wording.end_note(event, has_drafter, refused)
        self.conversation.keep(self.prompt, event.text)
