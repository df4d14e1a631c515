"""A server that speaks OpenAI's protocol, behind the chat; it does not tell what was drafted."""

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from dspark.config import SamplingChoice, ServerConfig, StopConfig
from dspark.errors import InputError, ServerError
from dspark.events import (
    DecodeStats,
    Event,
    Finished,
    FinishReason,
    LoadProgress,
    Piece,
    PrefillProgress,
    Round,
)
from dspark_tui.backend import BackendInfo, ChatMessages

KEY = "OPENAI_API_KEY"
SHOWN_MODELS = 8
Chunk = dict[str, Any]


@dataclass
class ServerBackend:
    """Chats through HTTP; `cancel` closes the connection, which ends the work of the server."""

    config: ServerConfig
    _info: BackendInfo | None = field(default=None, init=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, init=False)
    _waiting: asyncio.Task[Chunk | None] | None = field(default=None, init=False)
    _is_cancelled: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._url = base_url(self.config.url)

    @property
    def name(self) -> str:
        return self.config.model or self._url

    @property
    def info(self) -> BackendInfo:
        if self._info is None:
            raise InputError(f"{self._url} was not asked yet", "Wait until loading has ended.")
        return self._info

    def load(self) -> Iterator[LoadProgress]:
        yield LoadProgress(f"asking {self._url}", 0, 1)
        models = asyncio.run(self._models())
        name = self.config.model or only_model(models, self._url)
        limit = models.get(name, 0)
        self._info = BackendInfo(name, limit, self._url, "", has_drafter=False, is_server=True)

    def answer(
        self, messages: ChatMessages, sampling: SamplingChoice, stop: StopConfig
    ) -> Iterator[Event]:
        body = request_body(self.info.name, messages, sampling, stop)
        written = _Written()
        self._is_cancelled = False
        self._loop = asyncio.new_event_loop()
        chunks = self._chunks(body)
        try:
            for chunk in self._each(self._loop, chunks):
                yield from written.take(chunk)
            yield written.end("cancelled" if self._is_cancelled else written.reason)
        finally:
            self._loop.run_until_complete(chunks.aclose())
            self._loop.close()

    def cancel(self) -> None:
        self._is_cancelled = True
        loop, waiting = self._loop, self._waiting
        if loop is not None and waiting is not None:
            with suppress(RuntimeError):  # the answer has just ended
                loop.call_soon_threadsafe(waiting.cancel)

    def close(self) -> None:
        self.cancel()

    def _each(
        self, loop: asyncio.AbstractEventLoop, chunks: AsyncIterator[Chunk]
    ) -> Iterator[Chunk]:
        """Chunks as they come, until the last one or a cancel."""
        while True:
            self._waiting = loop.create_task(_next(chunks))
            if self._is_cancelled:
                self._waiting.cancel()
            try:
                chunk = loop.run_until_complete(self._waiting)
            except asyncio.CancelledError:
                return
            if chunk is None:
                return
            yield chunk

    async def _models(self) -> dict[str, int]:
        """Names of the models, and the size of their context (0 where it is not told)."""
        async with self._sent("GET", "/models") as response:
            if response.status_code == httpx.codes.NOT_FOUND and self.config.model:
                return {}
            await self._check(response)
            try:
                models = (json.loads(await response.aread()))["data"]
                return {model["id"]: model.get("max_model_len") or 0 for model in models}
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ServerError(
                    f"{self._url} does not answer as OpenAI's protocol says",
                    "Check the URL; it often ends in /v1.",
                ) from None

    async def _chunks(self, body: dict[str, Any]) -> AsyncGenerator[Chunk, None]:
        """What the server streams, up to its end."""
        has_ended = False
        async with self._sent("POST", "/chat/completions", json=body) as response:
            await self._check(response)
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                if data == "[DONE]":
                    return
                if data:
                    chunk = parse_chunk(data, self._url)
                    has_ended = has_ended or finish_reason(chunk) is not None
                    yield chunk
        if not has_ended:
            raise cut(self._url)

    @asynccontextmanager
    async def _sent(self, method: str, path: str, **content: Any) -> AsyncIterator[httpx.Response]:
        """A response whose body is still to come; whatever breaks is a ServerError."""
        key = os.environ.get(KEY)
        silent = httpx.Timeout(self.config.silent_seconds, connect=self.config.connect_seconds)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            async with (
                httpx.AsyncClient(timeout=silent, headers=headers) as client,
                client.stream(method, f"{self._url}{path}", **content) as response,
            ):
                yield response
        except httpx.ConnectError:
            raise ServerError(
                f"nothing answers at {self._url}", "Start the server, or check the URL."
            ) from None
        except httpx.TimeoutException:
            raise ServerError(
                f"{self._url} took too long to answer", "Look at the server, then ask again."
            ) from None
        except httpx.TransportError:
            raise cut(self._url) from None
        except (httpx.InvalidURL, UnicodeError):
            raise InputError(f"{self._url} is no URL", "As in http://localhost:8000.") from None

    async def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        said = error_text(await response.aread())
        match response.status_code:
            case 401 | 403:
                known = f"Check {KEY}." if os.environ.get(KEY) else f"Set {KEY} to your key."
                raise ServerError(f"{self._url} does not let you in", known)
            case 404 if self._info is not None:
                raise ServerError(
                    f"{self._url} has no model {self._info.name}{said}",
                    "Leave --model out to see what it has.",
                )
            case 404:
                raise ServerError(
                    f"{self._url} has no list of models", "Check the URL; it often ends in /v1."
                )
            case code:
                raise ServerError(f"{self._url} refuses with status {code}{said}")


async def _next(chunks: AsyncIterator[Chunk]) -> Chunk | None:
    return await anext(chunks, None)


def base_url(url: str) -> str:
    """With scheme and path: localhost:8000 is http://localhost:8000/v1."""
    url = (url if "://" in url else f"http://{url}").rstrip("/")
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise InputError(f"--server {url} is no URL", "As in --server http://localhost:8000.")
    return url if parts.path else f"{url}/v1"


def only_model(models: dict[str, int], url: str) -> str:
    if len(models) == 1:
        return next(iter(models))
    if not models:
        raise ServerError(f"{url} has no model", "Load one there first.")
    names = ", ".join([*models][:SHOWN_MODELS])
    rest = f" and {len(models) - SHOWN_MODELS} more" if len(models) > SHOWN_MODELS else ""
    raise InputError(f"{url} has several models: {names}{rest}", "Choose one with --model.")


def request_body(
    model: str, messages: ChatMessages, sampling: SamplingChoice, stop: StopConfig
) -> dict[str, Any]:
    """What the user chose; top_k is an addition that not all know."""
    body: dict[str, Any] = {
        "model": model,
        "messages": list(messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": stop.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": sampling.seed,
        "stop": list(stop.strings) or None,
    }
    return {name: value for name, value in body.items() if value is not None}


def parse_chunk(data: str, url: str) -> Chunk:
    try:
        chunk = json.loads(data)
    except ValueError:
        chunk = None
    if not isinstance(chunk, dict):
        raise ServerError(f"{url} streams what is no JSON", "Is it a server for chats?")
    if "error" in chunk:
        raise ServerError(f"{url} failed half-way{error_text(data.encode())}")
    return chunk


def finish_reason(chunk: Chunk) -> str | None:
    choices = chunk.get("choices") or [{}]
    reason = choices[0].get("finish_reason")
    return reason if isinstance(reason, str) else None


def error_text(body: bytes) -> str:
    """ ": what the server says", or nothing, from either form of error."""
    try:
        error = json.loads(body)
        error = error.get("error", error)
        said = error if isinstance(error, str) else error.get("message", "")
    except (ValueError, AttributeError):
        return ""
    return f": {' '.join(str(said).split())[:200]}" if said else ""


def cut(url: str) -> ServerError:
    return ServerError(f"{url} broke off in the middle", "What came stays; ask again for the rest.")


class _Written:
    """An answer so far, told as events: each delta a round without drafts."""

    def __init__(self) -> None:
        self.reason: FinishReason = "stop_token"
        self._texts: list[str] = []
        self._usage: dict[str, int] = {}
        self._asked_at = self._first_at = self._last_at = time.perf_counter()

    def take(self, chunk: Chunk) -> Iterator[Event]:
        self._usage = chunk.get("usage") or self._usage
        if finish_reason(chunk) == "length":
            self.reason = "max_tokens"
        delta = (chunk.get("choices") or [{}])[0].get("delta") or {}
        if text := delta.get("content"):
            yield self._event(text)

    def _event(self, text: str) -> Event:
        piece, now, before = Piece(-1, text, False), time.perf_counter(), self._last_at
        self._texts.append(text)
        self._last_at = now
        if len(self._texts) == 1:
            self._first_at = now
            return PrefillProgress(0, 0, 0, (piece,))
        return Round(
            request_id=0,
            index=len(self._texts) - 2,
            anchor=-1,
            draft=(),
            confidence=None,
            verified=0,
            accepted=0,
            next=-1,
            pieces=(piece,),
            rejected=(),
            context_tokens=len(self._texts),
            draft_seconds=0.0,
            verify_seconds=0.0,
            seconds=now - before,
        )

    def end(self, reason: FinishReason) -> Finished:
        """Counted by the server where it does so, otherwise by deltas."""
        stats = DecodeStats(
            prompt_tokens=self._usage.get("prompt_tokens") or 0,
            new_tokens=self._usage.get("completion_tokens") or len(self._texts),
            rounds=max(len(self._texts) - 1, 0),
            drafted=0,
            verified=0,
            accepted=0,
            prefill_seconds=self._first_at - self._asked_at,
            decode_seconds=self._last_at - self._first_at,
        )
        return Finished(0, reason, (), "".join(self._texts), stats)
