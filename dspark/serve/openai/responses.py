"""Answers of /v1/responses: items of output, and the events that build them up."""

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dspark.config import SamplingConfig
from dspark.events import Finished, Piece
from dspark.serve.openai.logprobs import Json, TokenBytes, chat_logprobs
from dspark.serve.openai.responses_body import ResponsesBody
from dspark.serve.openai.shapes import NewText, usage_of
from dspark.text.tool_calls import ToolCallReader
from dspark.text.tool_format import ToolCall

CUT = ("max_tokens", "context", "cancelled")


class ResponseWriter:
    """Writes one response: feed it text in order; every method yields the events to send."""

    def __init__(
        self,
        body: ResponsesBody,
        model: str,
        sampling: SamplingConfig,
        *,
        reader: Callable[[], ToolCallReader] | None,
        token_bytes: TokenBytes | None,
    ) -> None:
        """sampling: as decoded. reader: makes what reads calls, where tools are offered.
        token_bytes: where log-probabilities are told."""
        self._token_bytes = token_bytes
        self._reader = None if reader is None else reader()
        self._num_events = 0
        self._items: list[Json] = []
        self._open: _OpenItem | None = None
        self._pieces: list[Piece] = []  # of text that is not told yet
        self._head = _head(body, model, sampling)

    def begin(self) -> Iterator[Json]:
        yield self._event("response.created", response=self.response())
        yield self._event("response.in_progress", response=self.response())

    def push(self, new: NewText) -> Iterator[Json]:
        self._pieces += [piece for piece in new.pieces if not piece.is_thinking]
        if new.thinking:
            yield from self._write("reasoning", new.thinking)
        yield from self._answer([new.text] if self._reader is None else self._reader.push(new.text))

    def finish(self, finished: Finished) -> Iterator[Json]:
        if self._reader is not None:
            yield from self._answer(self._reader.finish())
        is_cut = finished.reason in CUT
        status = "incomplete" if is_cut else "completed"
        if self._open is None and not self._items:
            yield from self._switch("message")  # an answer without a word
        yield from self._close(status)
        why = "max_output_tokens" if finished.reason != "cancelled" else "time_limit"
        self._head |= {
            "status": status,
            "completed_at": None if is_cut else int(time.time()),
            "incomplete_details": {"reason": why} if is_cut else None,
            "usage": _usage(finished),
        }
        yield self._event(f"response.{status}", response=self.response())

    def fail(self, error: Json) -> Iterator[Json]:
        """The end of a stream that had begun; `error` as in OpenAI's refusals."""
        told = {"code": error["code"] or "server_error", "message": error["message"]}
        self._head |= {"status": "failed", "error": told}
        yield self._event("response.failed", response=self.response())

    def response(self) -> Json:
        return {**self._head, "output": [*self._items]}

    def _answer(self, parts: Iterable[str | ToolCall]) -> Iterator[Json]:
        for part in parts:
            if isinstance(part, ToolCall):
                yield from self._call(part)
            elif part:
                yield from self._write("message", part)

    def _write(self, kind: str, text: str) -> Iterator[Json]:
        yield from self._switch(kind)
        assert self._open is not None
        self._open.text += text
        place = self._open.place
        if kind == "reasoning":
            yield self._event("response.reasoning_text.delta", **place, delta=text)
            return
        logprobs = self._logprobs()
        self._open.logprobs += logprobs
        delta = {"delta": text, "logprobs": logprobs}
        yield self._event("response.output_text.delta", **place, **delta)

    def _logprobs(self) -> list[Json]:
        pieces, self._pieces = self._pieces, []
        return [] if self._token_bytes is None else chat_logprobs(pieces, self._token_bytes)

    def _switch(self, kind: str) -> Iterator[Json]:
        """Close the open item unless it is of this kind, and open one that is."""
        if self._open is not None and self._open.kind == kind:
            return
        yield from self._close("completed")
        self._open = _OpenItem(kind, len(self._items))
        yield self._event(
            "response.output_item.added",
            output_index=self._open.index,
            item=self._open.item("in_progress", has_content=False),
        )
        part = self._open.part()
        yield self._event("response.content_part.added", **self._open.place, part=part)

    def _close(self, status: str) -> Iterator[Json]:
        if self._open is None:
            return
        opened, self._open = self._open, None
        if opened.kind == "reasoning":
            yield self._event("response.reasoning_text.done", **opened.place, text=opened.text)
        else:
            opened.logprobs += self._logprobs()
            told = {"text": opened.text, "logprobs": opened.logprobs}
            yield self._event("response.output_text.done", **opened.place, **told)
        part = opened.part()
        yield self._event("response.content_part.done", **opened.place, part=part)
        yield self._done(opened.item(status))

    def _call(self, call: ToolCall) -> Iterator[Json]:
        yield from self._close("completed")
        item: Json = {
            "type": "function_call",
            "id": f"fc_{uuid.uuid4().hex}",
            "call_id": f"call_{uuid.uuid4().hex[:24]}",
            "name": call.name,
            "arguments": "",
            "status": "in_progress",
        }
        index = len(self._items)
        yield self._event("response.output_item.added", output_index=index, item=item)
        place = {"item_id": item["id"], "output_index": index}
        name = "response.function_call_arguments"
        yield self._event(f"{name}.delta", **place, delta=call.arguments)
        yield self._event(f"{name}.done", **place, name=call.name, arguments=call.arguments)
        yield self._done({**item, "arguments": call.arguments, "status": "completed"})

    def _done(self, item: Json) -> Json:
        self._items.append(item)
        index = len(self._items) - 1
        return self._event("response.output_item.done", output_index=index, item=item)

    def _event(self, kind: str, **fields: Any) -> Json:
        self._num_events += 1
        return {"type": kind, "sequence_number": self._num_events - 1, **fields}


class _OpenItem:
    """A message or thinking that is being written: one part of text."""

    def __init__(self, kind: str, index: int) -> None:
        self.kind, self.index, self.text = kind, index, ""
        self.logprobs: list[Json] = []
        self._id = f"{'rs' if kind == 'reasoning' else 'msg'}_{uuid.uuid4().hex}"

    @property
    def place(self) -> Json:
        return {"item_id": self._id, "output_index": self.index, "content_index": 0}

    def part(self) -> Json:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        told = {"annotations": list[Json](), "logprobs": self.logprobs}
        return {"type": "output_text", "text": self.text, **told}

    def item(self, status: str, *, has_content: bool = True) -> Json:
        content = [self.part()] if has_content else []
        if self.kind == "reasoning":
            shape: Json = {"type": "reasoning", "id": self._id, "summary": [], "content": content}
            return {**shape, "status": status}
        shape = {"type": "message", "id": self._id, "status": status, "role": "assistant"}
        return {**shape, "content": content}


def _head(body: ResponsesBody, model: str, sampling: SamplingConfig) -> Json:
    """All fields but the output, most of them as the request states them."""
    stated = body.model_dump(mode="json", by_alias=True, exclude_none=True)
    asked = stated.get("text", {}).get("format", {"type": "text"})
    tools = [{"description": None, "parameters": None, "strict": None, **tool}
             for tool in stated.get("tools", [])]  # fmt: skip
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "model": model,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None} | stated.get("reasoning", {}),
        "background": False,
        "store": False,
        "service_tier": "default",
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "top_logprobs": body.top_logprobs or 0,
        "text": {"format": asked},
        "tool_choice": stated.get("tool_choice", "auto"),
        "tools": tools,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": body.metadata or {},
        "safety_identifier": None,
        "prompt_cache_key": None,
    }


def _usage(finished: Finished) -> Json:
    used = usage_of([finished], 1)
    return {
        "input_tokens": used["prompt_tokens"],
        "input_tokens_details": used["prompt_tokens_details"],
        "output_tokens": used["completion_tokens"],
        "output_tokens_details": used["completion_tokens_details"],
        "total_tokens": used["total_tokens"],
    }
