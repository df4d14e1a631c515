"""Streams an answer to stdout and collects its rounds."""

import sys
from collections.abc import Iterable

from dspark.chat.control_characters import visible
from dspark.events import Event, Finished, Round
from dspark_cli.output.answer import ThinkingLine


def follow_answer(
    events: Iterable[Event], *, writes: bool, has_text: bool
) -> tuple[list[Round], Finished]:
    """Collects the rounds; with `writes`, also streams the answer."""
    rounds: list[Round] = []
    writer = _Writer(has_text)
    try:
        for event in events:
            if writes:
                writer.write(event)
            if isinstance(event, Finished):
                return rounds, event
            if isinstance(event, Round):
                rounds.append(event)
    finally:
        writer.end_line()
    raise AssertionError("a decode ends with Finished")


class _Writer:
    """Streams text, or token ids with commas for a model without a tokenizer. Thinking
    goes to stderr if that is a terminal."""

    def __init__(self, has_text: bool) -> None:
        self._has_text = has_text
        self._has_begun = False
        self._thinking = ThinkingLine(sys.stderr)

    def write(self, event: Event) -> None:
        if isinstance(event, Finished):
            self._write_text(event.tail if self._has_text else "", event.ends_thinking)
            return
        for piece in event.pieces:
            separator = "," if self._has_begun else ""
            text = piece.text if self._has_text else f"{separator}{piece.token_id}"
            self._write_text(text, piece.is_thinking)
            self._has_begun = True
        sys.stdout.flush()

    def end_line(self) -> None:
        self._thinking.end()
        if self._has_begun:
            print(flush=True)

    def _write_text(self, text: str, is_thinking: bool) -> None:
        if is_thinking:
            self._thinking.write(visible(text))
        elif text:
            self._thinking.end()
            # a file or pipe gets the exact text
            print(visible(text) if sys.stdout.isatty() else text, end="")
