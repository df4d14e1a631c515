"""The HTTP application around a pair."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from dspark import __version__
from dspark.config import ServeConfig
from dspark.engine.session import Session
from dspark.errors import DSparkError
from dspark.serve.guard import Guard
from dspark.serve.openai.errors import (
    answer_error,
    answer_http_error,
    answer_invalid_body,
    described,
)
from dspark.serve.openai.routes import openai_routes
from dspark.serve.round_stream import server_sent
from dspark.serve.serving import Serving


class EventStream(StreamingResponse):
    media_type = "text/event-stream"


def make_app(session: Session, config: ServeConfig = ServeConfig()) -> FastAPI:
    """While it runs, it owns the session's engine; the session is closed by the caller."""
    serving = Serving(session, config)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        serving.start()
        yield
        serving.stop()

    app = FastAPI(title="dspark", version=__version__, lifespan=running)
    app.add_middleware(Guard, config=config)
    app.add_exception_handler(RequestValidationError, answer_invalid_body)
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(DSparkError, answer_error)
    app.add_exception_handler(Exception, answer_error)
    app.include_router(openai_routes(serving))
    _add_own_routes(app, serving)
    for described_body in app.openapi()["components"]["schemas"].values():
        if model := described_body.get("properties", {}).get("model"):
            model["enum"] = [serving.name]
    return app


def _add_own_routes(app: FastAPI, serving: Serving) -> None:
    @app.get("/health", response_class=PlainTextResponse)
    async def health() -> Response:
        is_well = serving.decoding.is_alive
        return PlainTextResponse("ok" if is_well else "not decoding", 200 if is_well else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses=described(401))
    async def metrics() -> Response:
        num_waiting = serving.session.engine.num_waiting
        text = serving.metrics.text(serving.decoding.num_requests, num_waiting)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/dspark/rounds", response_class=EventStream, responses=described(401))
    async def rounds() -> StreamingResponse:
        """Every round of every request as server-sent events; see docs/rounds.md."""
        return EventStream(_rounds(serving))


async def _rounds(serving: Serving) -> AsyncIterator[str]:
    async for record in serving.rounds.records():
        yield server_sent(record)
