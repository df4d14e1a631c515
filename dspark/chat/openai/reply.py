"""The body of an answer: events, or one JSON object from a server that does not stream."""

import json
from collections.abc import Iterable, Iterator

from dspark.chat.openai.delta import (
    CHECK,
    Delta,
    Json,
    error_text,
    read_delta,
)
from dspark.chat.openai.sse import EventDecoder, ServerEvent
from dspark.errors import ServerError

DONE = "[DONE]"


class Reply:
    """Parses bytes as they arrive. Raises ServerError, in one line, for an invalid answer."""

    def __init__(self, server: str) -> None:
        self.is_done = False  # the end, though the connection may stay open
        self._server = server
        self._events = EventDecoder()
        self._whole: bytearray | None = None  # of a body that is not a stream
        self._has_begun = self._has_events = self._has_text = self._has_reason = False

    @property
    def is_complete(self) -> bool:
        return self.is_done or self._has_reason

    def take(self, chunk: bytes) -> Iterator[Delta]:
        """The deltas that this chunk completes."""
        start = b"" if self._has_begun else chunk.lstrip(b"\xef\xbb\xbf \t\r\n")
        if start:
            self._has_begun = True
            self._whole = bytearray() if start[:1] in (b"{", b"[") else None
        if self._whole is None:
            yield from self._deltas(self._events.feed(chunk))
        else:
            self._whole += chunk

    def end(self) -> Iterator[Delta]:
        """The rest when the connection is closed. Raises ServerError if that was too early."""
        if self._whole is not None:
            yield self._delta(self._parsed(self._whole.decode("utf-8-sig", errors="replace")))
            self.is_done = True
            return
        last = list(self._events.end())
        if not all(_is_json(data) or data == DONE for e in last for data in _objects(e.data)):
            raise self.cut()
        yield from self._deltas(last)
        if self._has_begun and not self._has_events:
            raise ServerError(f"{self._server} sent neither events nor JSON", CHECK)
        if not self.is_complete:
            raise self.cut()

    def cut(self) -> ServerError:
        """The error for a connection that ends early."""
        if not self._has_text:
            return no_answer(self._server)
        return ServerError(
            "the connection was closed before the answer was complete",
            "The partial answer is kept.",
        )

    def _deltas(self, events: Iterable[ServerEvent]) -> Iterator[Delta]:
        for event in events:
            self._has_events = True
            for data in _objects(event.data):
                if data == DONE:
                    self.is_done = True
                    return
                chunk = self._parsed(data)
                if event.name == "error":
                    chunk = {"error": chunk.get("error") or chunk}
                yield self._delta(chunk)

    def _delta(self, chunk: Json) -> Delta:
        delta = read_delta(chunk, self._server)
        if self._whole is not None and not chunk.get("choices"):
            said = error_text(chunk)
            raise ServerError(f"{self._server} sent JSON without an answer{said}", CHECK)
        self._has_reason = self._has_reason or delta.reason is not None
        self._has_text = self._has_text or bool(delta.text or delta.thinking)
        return delta

    def _parsed(self, data: str) -> Json:
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            raise ServerError(f"{self._server} sent invalid JSON", CHECK) from None
        if not isinstance(chunk, dict):
            raise ServerError(f"{self._server} sent JSON that is not an object", CHECK)
        return chunk


def _objects(data: str) -> list[str]:
    """One object, or one per line from a server that omits the empty lines between events."""
    return [data] if _is_json(data) else [each.strip() for each in data.split("\n") if each.strip()]


def _is_json(data: str) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def no_answer(server: str) -> ServerError:
    return ServerError(f"{server} closed the connection without an answer", "Check its log.")
