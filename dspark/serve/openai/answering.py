"""Decodes the requests of one HTTP call, and sends the answer whole or as a stream."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Sequence

from fastapi import HTTPException
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import Request as HttpRequest
from starlette.types import Receive, Scope, Send

from dspark.engine.request import Request
from dspark.errors import DSparkError
from dspark.events import Event, Finished, Piece
from dspark.serve.openai.errors import answer_error, error_object
from dspark.serve.openai.logprobs import Json
from dspark.serve.openai.requests import DecodingBody
from dspark.serve.openai.shapes import Answer, Shape, new_text, usage_of, without_stops
from dspark.serve.queue_places import TakenPlaces
from dspark.serve.round_stream import record_of, server_sent
from dspark.serve.serving import Serving

_log = logging.getLogger("uvicorn.error")
DONE = "[DONE]"
TOO_MANY, CLIENT_LEFT = 429, 499


async def respond(
    serving: Serving,
    http: HttpRequest,
    body: DecodingBody,
    requests: Sequence[Request],
    shape: Shape,
) -> Response:
    """As `send`, of chats and completions."""
    if body.stream:
        return await send(serving, http, requests, _stream(serving, body, requests, shape))
    return await send(serving, http, requests, _whole(serving, body, requests, shape))


async def send(
    serving: Serving,
    http: HttpRequest,
    requests: Sequence[Request],
    answer: AsyncIterator[str] | Coroutine[None, None, Json],
) -> Response:
    """The answer to these requests as a stream of events, or whole. Raises InputError for a request
    that cannot be decoded, and HTTPException if too many wait."""
    try:
        for request in requests:
            serving.session.engine.check(request)
        places = _take_places(serving, len(requests))
    except Exception:
        if isinstance(answer, Coroutine):
            answer.close()
        raise
    if not isinstance(answer, Coroutine):
        return _StreamInPlace(answer, places)
    task = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_client_left(http))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:  # also when the server stops
        leaving.cancel()
        task.cancel()
        places.give_back()
    if not task.done():
        return Response(status_code=CLIENT_LEFT)
    if isinstance(
        error := task.exception(), Exception
    ):  # raised, it would close the connection too
        if not isinstance(error, DSparkError):
            _log.error("a request failed", exc_info=error)
        return await answer_error(http, error)
    return JSONResponse(task.result())


class _StreamInPlace(StreamingResponse):
    """Server-sent events; its places are given back however it ends, also if it never began."""

    def __init__(self, chunks: AsyncIterator[str], places: TakenPlaces) -> None:
        super().__init__(chunks, media_type="text/event-stream")
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._places.give_back()


def _take_places(serving: Serving, count: int) -> TakenPlaces:
    """At once, since the requests of a stream are submitted when it begins to be sent."""
    places = serving.places.take(count)
    if places is None:
        raise HTTPException(
            TOO_MANY,
            f"{serving.places.most} requests are running or waiting; ask again later",
            {"Retry-After": "1"},
        )
    return places


async def _whole(
    serving: Serving, body: DecodingBody, requests: Sequence[Request], shape: Shape
) -> Json:
    finished: dict[int, Finished] = {}
    pieces: dict[int, list[Piece]] = defaultdict(list)
    records: list[Json] = []
    stops = serving.session.engine.stop_token_ids
    async for index, event in serving.decoding.answers(requests, serving.config.max_seconds):
        if body.tells_rounds:
            records.append({"choice": index, **record_of(event)})
        if isinstance(event, Finished):
            finished[index] = event
        elif body.num_logprobs is not None:
            pieces[index] += without_stops(new_text(event), stops).pieces
    answers = [Answer(finished[index], pieces[index]) for index in range(len(requests))]
    usage = usage_of([answer.finished for answer in answers], body.num_choices)
    whole = shape.whole(answers, usage)
    return {**whole, "dspark": {"rounds": records}} if body.tells_rounds else whole


async def _stream(
    serving: Serving, body: DecodingBody, requests: Sequence[Request], shape: Shape
) -> AsyncIterator[str]:
    begun: set[int] = set()
    finished: dict[int, Finished] = {}
    stops = serving.session.engine.stop_token_ids
    answers = serving.decoding.answers(requests, serving.config.max_seconds)
    try:
        async for index, event in answers:
            if chunk := _chunk(body, shape, index, event, stops, is_first=index not in begun):
                begun.add(index)
                yield server_sent(chunk)
            if isinstance(event, Finished):
                finished[index] = event
                yield server_sent(shape.last_chunk(index, event.reason))
        if body.includes_usage:
            choices = [finished[index] for index in range(len(requests))]
            yield server_sent(shape.usage_chunk(usage_of(choices, body.num_choices)))
        yield server_sent(DONE)
    except Exception as error:  # the status is sent already
        yield server_sent(error_object(error))
    finally:
        await answers.aclose()


def _chunk(
    body: DecodingBody,
    shape: Shape,
    index: int,
    event: Event,
    stop_token_ids: frozenset[int],
    *,
    is_first: bool,
) -> Json:
    """Empty for an event that adds nothing a client would see."""
    new = without_stops(new_text(event), stop_token_ids)
    if not body.tells_rounds:
        has_tokens = body.num_logprobs is not None and new.pieces
        is_seen = new.text or new.thinking or is_first or has_tokens
        return shape.chunk(index, new, is_first=is_first) if is_seen else {}
    return {**shape.chunk(index, new, is_first=is_first), "dspark": record_of(event)}


async def _client_left(http: HttpRequest) -> None:
    """Returns when the connection is closed; the body has been read before."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
