"""Server-sent events from bytes, split exactly as in the standard (WHATWG HTML).

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# U+2028 and similar end a line for Python's splitlines, but occur unescaped inside JSON.
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """`name` is "" if the stream has none; `data` is its lines, joined by line feeds."""

    name: str
    data: str


class EventDecoder:
    """Accepts chunks of any size; `end` yields an event that was not closed by an empty line."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._name = ""
        self._data: list[str] = []
        self._is_after_return = False
        self._is_first_line = True

    def feed(self, chunk: bytes) -> Iterator[ServerEvent]:
        if not chunk:
            return
        if self._is_after_return:  # a CRLF that two chunks share
            chunk = chunk.removeprefix(b"\n")
        self._is_after_return = chunk.endswith(b"\r")
        *ended, rest = _LINE_END.split(chunk)
        for part in ended:
            self._line += part
            yield from self._end_line()
        self._line += rest

    def end(self) -> Iterator[ServerEvent]:
        """The standard drops an event without a closing empty line, but servers omit that line."""
        yield from self._end_line()
        yield from self._dispatch()

    def _end_line(self) -> Iterator[ServerEvent]:
        raw, self._line = bytes(self._line), bytearray()
        if self._is_first_line:
            raw, self._is_first_line = raw.removeprefix(_BOM), False
        if not raw:
            yield from self._dispatch()
            return
        field, _, value = raw.decode("utf-8", errors="replace").partition(":")
        value = value.removeprefix(" ")
        match field:
            case "data":
                self._data.append(value)
            case "event":
                self._name = value
            case "error":  # older servers of llama.cpp: a field of this name instead of an event
                self._name, self._data = "error", [value]

    def _dispatch(self) -> Iterator[ServerEvent]:
        if self._data:
            yield ServerEvent(self._name, "\n".join(self._data))
        self._name, self._data = "", []
