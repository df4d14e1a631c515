"""The limit of a server's queue holds whatever comes at once."""

import asyncio

import pytest
from fastapi import HTTPException
from starlette.requests import ClientDisconnect

from dspark.config import SamplingConfig, ServeConfig, StopConfig
from dspark.engine.request import Request
from dspark.serve.openai.answering import respond
from dspark.serve.openai.requests import CompletionBody
from dspark.serve.openai.shapes import CompletionShape
from dspark.serve.serving import Serving

SCOPE = {"type": "http", "asgi": {"spec_version": "2.4"}}


@pytest.fixture
def serving(open_pair):
    serving = Serving(open_pair(), ServeConfig(max_queue=2))
    serving.start()
    yield serving
    serving.stop()


def test_streams_that_begin_at_once_do_not_pass_it(serving):
    """Their requests are submitted when they begin to be sent, which is later."""
    body = CompletionBody(model="mine", prompt="Hi", stream=True)

    async def ask():
        requests = [Request((5, 6), SamplingConfig(), StopConfig(max_tokens=3))]
        return await respond(serving, None, body, requests, CompletionShape("mine"))

    async def forever():
        await asyncio.Event().wait()

    async def to_client(message):
        pass

    async def to_nobody(message):
        raise OSError("the client has left")

    async def run():
        first, second = await ask(), await ask()
        with pytest.raises(HTTPException) as caught:
            await ask()
        assert caught.value.status_code == 429
        await first(SCOPE, forever, to_client)
        third = await ask()  # its place is free again
        with pytest.raises(HTTPException):
            await ask()
        for response in (second, third):  # one that never begins gives its place back too
            with pytest.raises((OSError, ClientDisconnect)):
                await response(SCOPE, forever, to_nobody)
        assert len([await ask(), await ask()]) == 2

    asyncio.run(run())
