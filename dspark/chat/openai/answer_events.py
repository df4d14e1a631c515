"""An answer of a server as events: text that comes, and the sums at its end."""

import time
from collections.abc import Iterable, Iterator

from dspark.chat.openai.delta import Delta
from dspark.errors import ServerError
from dspark.events import (
    DecodeStats,
    Finished,
    FinishReason,
    Piece,
    PrefillProgress,
    Round,
    TextDelta,
)
from dspark.text.spans import Span
from dspark.text.thinking import text_splitter

BURST_SECONDS = 1e-3  # between two deltas; a streamed answer is never faster


class Written:
    """The answer so far."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._tools: list[str] = []
        self._splitter = text_splitter()
        self._usage: dict[str, object] = {}
        self._rounds: list[Round] = []
        self._deltas = 0
        self._asked_at = self._first_at = self._last_at = time.perf_counter()

    def take(self, delta: Delta) -> Iterator[TextDelta | PrefillProgress | Round]:
        self._usage = delta.usage or self._usage
        self._reason = delta.reason or self._reason
        self._tools += delta.tools
        if delta.round is not None:
            yield self._told_round(delta.round)
            return
        thought = [Span(delta.thinking, is_thinking=True)] if delta.thinking else []
        if pieces := self._told([*thought, *self._splitter.push(delta.text)]):
            yield self._event(pieces)

    def _told(self, spans: Iterable[Span]) -> tuple[Piece, ...]:
        shown = [span for span in spans if span.text and not span.is_mark]
        for span in shown:
            (self._thoughts if span.is_thinking else self._texts).append(span.text)
        return tuple(Piece(-1, span.text, False, is_thinking=span.is_thinking) for span in shown)

    def _told_round(self, event: PrefillProgress | Round) -> PrefillProgress | Round:
        """Its pieces say which text is thinking, so nothing is left to find out."""
        for piece in event.pieces:
            (self._thoughts if piece.is_thinking else self._texts).append(piece.text)
        self._note_time(len(event.pieces))
        if isinstance(event, Round):
            self._rounds.append(event)
        return event

    def _event(self, pieces: tuple[Piece, ...]) -> TextDelta:
        return TextDelta(0, pieces, self._note_time(1))

    def _note_time(self, num_deltas: int) -> float:
        """Seconds since the text before; 0 for the first."""
        now, before = time.perf_counter(), self._last_at
        is_first, self._deltas = not self._deltas, self._deltas + num_deltas
        if num_deltas:
            self._last_at = now
        if is_first:
            self._first_at = before = now
        return now - before

    def end(self, model: str) -> Finished:
        """Raises ServerError if the model did not answer with text."""
        last = self._told(self._splitter.finish())  # may have begun a mark
        text = "".join(self._texts)
        if self._reason == "content_filter":
            raise ServerError(
                f"the server's content filter stopped {model}", "Rephrase the question."
            )
        if not text and (self._tools or self._reason in ("tool_calls", "function_call")):
            names = f" ({', '.join(self._tools)})" if self._tools else ""
            raise ServerError(
                f"{model} called a tool{names} instead of answering",
                "This chat has no tools; ask for an answer in text.",
            )
        return self._finished("max_tokens" if self._reason == "length" else "stop_token", last)

    def cancelled(self) -> Finished:
        return self._finished("cancelled", self._told(self._splitter.finish()))

    def _finished(self, reason: FinishReason, last: tuple[Piece, ...]) -> Finished:
        """Counted by the server if it reports usage, otherwise by deltas.

        No rate if everything came at once, because a server or proxy buffered it.
        """
        seconds = self._last_at - self._first_at
        if seconds < BURST_SECONDS * (self._deltas - 1):
            seconds = 0.0
        parked = [each for each in self._rounds if each.is_parked]
        stats = DecodeStats(
            prompt_tokens=self._counted("prompt_tokens"),
            new_tokens=self._counted("completion_tokens") or self._deltas,
            rounds=len(self._rounds),
            drafted=sum(len(each.draft) for each in self._rounds),
            verified=sum(each.verified for each in self._rounds),
            accepted=sum(each.accepted for each in self._rounds),
            prefill_seconds=self._last_at - self._asked_at - seconds,
            decode_seconds=seconds,
            parked=len(parked),
            draft_cost=parked[-1].draft_cost if parked else 0.0,
            draft_tokens=parked[-1].draft_tokens if parked else 0.0,
        )
        text, thinking = "".join(self._texts), "".join(self._thoughts)
        return Finished(
            *(0, reason, (), text, stats),
            tail="".join(piece.text for piece in last),
            thinking=thinking,
            ends_thinking=any(piece.is_thinking for piece in last),
        )

    def _counted(self, name: str) -> int:
        count = self._usage.get(name)
        return count if isinstance(count, int) else 0
