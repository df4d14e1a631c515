"""Decodes the request of a response, and sends it whole or as named events."""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

from dspark.engine.request import Request
from dspark.events import Event, Finished
from dspark.serve.openai.errors import error_object
from dspark.serve.openai.logprobs import Json
from dspark.serve.openai.responses import ResponseWriter
from dspark.serve.openai.shapes import new_text, without_stops
from dspark.serve.round_stream import server_sent
from dspark.serve.serving import Serving


async def whole(serving: Serving, requests: Sequence[Request], writer: ResponseWriter) -> Json:
    stops = serving.session.engine.stop_token_ids
    async for _, event in serving.decoding.answers(requests, serving.config.max_seconds):
        for _ in _written(writer, event, stops):
            pass
    return writer.response()


async def streamed(
    serving: Serving, requests: Sequence[Request], writer: ResponseWriter
) -> AsyncIterator[str]:
    stops = serving.session.engine.stop_token_ids
    answers = serving.decoding.answers(requests, serving.config.max_seconds)
    try:
        for text in _sent(writer.begin()):
            yield text
        async for _, event in answers:
            for text in _sent(_written(writer, event, stops)):
                yield text
    except Exception as error:  # the status is sent already
        for text in _sent(writer.fail(error_object(error)["error"])):
            yield text
    finally:
        await answers.aclose()


def _written(writer: ResponseWriter, event: Event, stops: frozenset[int]) -> Iterator[Json]:
    yield from writer.push(without_stops(new_text(event), stops))
    if isinstance(event, Finished):
        yield from writer.finish(event)


def _sent(events: Iterable[Json]) -> Iterator[str]:
    return (server_sent(event, event["type"]) for event in events)
