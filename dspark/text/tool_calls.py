"""A model's calls of tools, found in its text as it comes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dspark.text.tool_calls_hermes import HERMES
from dspark.text.tool_format import ToolCall, ToolFormat


class ToolCallReader:
    """Splits text into text and calls. What stands between the marks and is no call stays text."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] = (), form: ToolFormat = HERMES) -> None:
        """tools: those offered, whose schemas say which parameters in tags are text."""
        self._functions = {tool["function"]["name"]: tool["function"] for tool in tools}
        self._form = form
        self._held = ""  # may begin a call, or is inside one
        self._is_inside = False
        self._num_calls = 0

    def push(self, text: str) -> Iterator[str | ToolCall]:
        self._held += text
        while True:
            mark = self._form.closing if self._is_inside else self._form.opening
            before, found, after = self._held.partition(mark)
            if not found:
                break
            self._held = after
            yield from self._calls(before) if self._is_inside else self._text(before.rstrip())
            self._is_inside = not self._is_inside
        if not self._is_inside:
            kept = self._held[self._undecided() :]
            text, self._held = self._held[: len(self._held) - len(kept)], kept
            yield from self._text(text)

    def finish(self) -> Iterator[str | ToolCall]:
        """The rest, at the end of the answer; some models leave the last mark out."""
        rest, self._held = self._held, ""
        if self._is_inside:
            yield from self._calls(rest)
        elif rest.strip() or not self._num_calls:
            yield from self._text(rest)

    def _undecided(self) -> int:
        """Where the text begins that a mark may follow, or that begins a mark."""
        held, opening = self._held, self._form.opening
        return next(at for at in range(len(held) + 1) if opening.startswith(held[at:].lstrip()))

    def _text(self, text: str) -> Iterator[str]:
        if text:
            yield text

    def _calls(self, text: str) -> Iterator[str | ToolCall]:
        calls = self._form.read(text, self._functions)
        if calls is None:
            yield f"{self._form.opening}{text}{self._form.closing}"
            return
        self._num_calls += len(calls)
        yield from calls
