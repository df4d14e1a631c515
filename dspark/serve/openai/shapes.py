"""Answers in OpenAI's shapes: whole, and as the chunks of a stream."""

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from dspark.events import Event, Finished, FinishReason, Piece
from dspark.serve.openai.logprobs import Json, TokenBytes, chat_logprobs, completion_logprobs
from dspark.text.tool_calls import ToolCallReader
from dspark.text.tool_format import ToolCall

_REASONS: dict[FinishReason, Literal["stop", "length"]] = {
    "stop_token": "stop",
    "stop_string": "stop",
    "max_tokens": "length",
    "context": "length",
    "cancelled": "length",  # the server's limit of time
}


@dataclass(frozen=True, slots=True)
class NewText:
    """What one event adds to an answer."""

    text: str
    thinking: str
    pieces: tuple[Piece, ...] = ()


def new_text(event: Event) -> NewText:
    if isinstance(event, Finished):
        return NewText("", event.tail) if event.ends_thinking else NewText(event.tail, "")
    texts: dict[bool, list[str]] = {False: [], True: []}
    for piece in event.pieces:
        texts[piece.is_thinking].append(piece.text)
    return NewText("".join(texts[False]), "".join(texts[True]), event.pieces)


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice; `pieces` without the token that ends it."""

    finished: Finished
    pieces: Sequence[Piece] = ()


class Shape(Protocol):
    """One answer's id and form."""

    def chunk(self, index: int, new: NewText, *, is_first: bool) -> Json: ...

    def last_chunk(self, index: int, reason: FinishReason) -> Json: ...

    def usage_chunk(self, usage: Json) -> Json: ...

    def whole(self, choices: Sequence[Answer], usage: Json) -> Json: ...


@dataclass(frozen=True, slots=True)
class _Envelope:
    model: str
    answer_id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def around(self, kind: str, choices: Sequence[Json], **more: Any) -> Json:
        head: Json = {"id": self.answer_id, "object": kind, "created": self.created}
        return {**head, "model": self.model, "choices": [*choices], **more}


class ChatShape:
    """chat.completion and chat.completion.chunk. Thinking goes into `reasoning_content`, and calls
    of tools, if any are offered, into `tool_calls`."""

    def __init__(
        self,
        model: str,
        *,
        reader: Callable[[], ToolCallReader] | None = None,
        token_bytes: TokenBytes | None = None,
    ) -> None:
        """reader: makes what reads calls, where tools are offered. token_bytes: where
        log-probabilities are told."""
        self._envelope = _Envelope(model, f"chatcmpl-{uuid.uuid4().hex}")
        self._reader, self._token_bytes = reader, token_bytes
        self._readers: dict[int, ToolCallReader] = defaultdict(reader)
        self._num_calls: dict[int, int] = defaultdict(int)

    def chunk(self, index: int, new: NewText, *, is_first: bool) -> Json:
        delta: Json = {"role": "assistant", "content": ""} if is_first else {}
        if new.thinking:
            delta["reasoning_content"] = new.thinking
        if self._reader is not None:
            self._add(delta, index, self._readers[index].push(new.text))
        elif new.text:
            delta["content"] = new.text
        choice: Json = {"index": index, "delta": delta, "finish_reason": None}
        if self._token_bytes is not None:
            choice["logprobs"] = self._logprobs(new.pieces)
        return self._chunk([choice])

    def _logprobs(self, pieces: Sequence[Piece]) -> Json | None:
        if self._token_bytes is None:
            return None
        return {"content": chat_logprobs(pieces, self._token_bytes), "refusal": None}

    def last_chunk(self, index: int, reason: FinishReason) -> Json:
        delta: Json = {}
        if self._reader is not None:
            self._add(delta, index, self._readers[index].finish())
        named = _named(reason, has_called=self._num_calls[index] > 0)
        return self._chunk([{"index": index, "delta": delta, "finish_reason": named}])

    def _add(self, delta: Json, index: int, parts: Iterable[str | ToolCall]) -> None:
        text, calls = _sorted(parts)
        if text:
            delta["content"] = text
        if calls:
            first = self._num_calls[index]
            self._num_calls[index] += len(calls)
            shaped = enumerate(calls, start=first)
            delta["tool_calls"] = [{"index": at, **_call_object(call)} for at, call in shaped]

    def usage_chunk(self, usage: Json) -> Json:
        return self._chunk([], usage=usage)

    def whole(self, choices: Sequence[Answer], usage: Json) -> Json:
        shaped = [self._choice(index, choice) for index, choice in enumerate(choices)]
        return self._envelope.around("chat.completion", shaped, usage=usage)

    def _choice(self, index: int, answer: Answer) -> Json:
        choice = answer.finished
        message: Json = {"role": "assistant", "content": choice.text}
        message |= {"refusal": None, "annotations": []}
        if choice.thinking:
            message["reasoning_content"] = choice.thinking
        calls: list[ToolCall] = []
        if self._reader is not None:
            reader = self._reader()
            text, calls = _sorted([*reader.push(choice.text), *reader.finish()])
            message["content"] = text or None
        if calls:
            message["tool_calls"] = [_call_object(call) for call in calls]
        reason = _named(choice.reason, has_called=bool(calls))
        logprobs = self._logprobs(answer.pieces)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def _chunk(self, choices: Sequence[Json], **more: Any) -> Json:
        return self._envelope.around("chat.completion.chunk", choices, **more)


def without_stops(new: NewText, stop_token_ids: Container[int]) -> NewText:
    """Without the token that ends the answer, which has no text."""
    pieces = tuple(piece for piece in new.pieces if piece.token_id not in stop_token_ids)
    return replace(new, pieces=pieces)


def _named(reason: FinishReason, *, has_called: bool) -> str:
    named = _REASONS[reason]
    return "tool_calls" if has_called and named == "stop" else named


def _sorted(parts: Iterable[str | ToolCall]) -> tuple[str, list[ToolCall]]:
    texts, calls = list[str](), list[ToolCall]()
    for part in parts:
        texts.append(part) if isinstance(part, str) else calls.append(part)
    return "".join(texts), calls


def _call_object(call: ToolCall) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


class CompletionShape:
    """text_completion, whole and in parts."""

    def __init__(self, model: str, *, token_bytes: TokenBytes | None = None) -> None:
        self._envelope = _Envelope(model, f"cmpl-{uuid.uuid4().hex}")
        self._token_bytes = token_bytes
        self._offsets: dict[int, int] = defaultdict(int)  # of each choice's next token

    def chunk(self, index: int, new: NewText, *, is_first: bool) -> Json:
        return self._of([self._choice(index, new.text, None, new.pieces)])

    def last_chunk(self, index: int, reason: FinishReason) -> Json:
        return self._of([self._choice(index, "", reason, None)])

    def usage_chunk(self, usage: Json) -> Json:
        return self._of([], usage=usage)

    def whole(self, choices: Sequence[Answer], usage: Json) -> Json:
        shaped = [
            self._choice(index, choice.finished.text, choice.finished.reason, choice.pieces)
            for index, choice in enumerate(choices)
        ]
        return self._of(shaped, usage=usage)

    def _choice(
        self, index: int, text: str, reason: FinishReason | None, pieces: Sequence[Piece] | None
    ) -> Json:
        named = None if reason is None else _REASONS[reason]
        logprobs = None
        if self._token_bytes is not None and pieces is not None:
            logprobs, self._offsets[index] = completion_logprobs(
                pieces, self._token_bytes, self._offsets[index]
            )
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": named}

    def _of(self, choices: Sequence[Json], **more: Any) -> Json:
        return self._envelope.around("text_completion", choices, **more)


def usage_of(choices: Sequence[Finished], num_per_prompt: int) -> Json:
    """Sums; a prompt counts once for all of its choices."""
    asked, stats = choices[::num_per_prompt], [choice.stats for choice in choices]
    prompt = sum(choice.stats.prompt_tokens for choice in asked)
    new = sum(each.new_tokens for each in stats)
    cached = sum(choice.stats.cached_tokens for choice in asked)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": sum(s.thinking_tokens for s in stats)},
    }
