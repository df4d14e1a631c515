"""What every HTTP request must pass before any endpoint: the key and the size of its body."""

import hmac
import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dspark.config import ServeConfig
from dspark.serve.openai.errors import error_body

OPEN_PATHS = ("/health",)


class Guard:
    """ASGI middleware; refusals have OpenAI's form."""

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self._app, self._config = app, config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if not self._has_key(scope["path"], headers):
            await _refuse(send, 401, "the API key is missing or wrong", "invalid_api_key")
            return
        body = await self._body(receive, headers)
        if body is None:
            limit = f"{self._config.max_body_bytes:,} bytes"
            await _refuse(send, 413, f"the body is larger than {limit}")
            return
        await self._app(scope, _replayed(body, receive), send)

    def _has_key(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if self._config.api_key is None or path in OPEN_PATHS:
            return True
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return hmac.compare_digest(given, self._config.api_key.encode())

    async def _body(self, receive: Receive, headers: dict[bytes, bytes]) -> list[Message] | None:
        """The messages up to the body's end; None if it is too large."""
        stated = headers.get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > self._config.max_body_bytes:
            return None
        messages, num_bytes = [], 0
        while True:
            message = await receive()
            messages.append(message)
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._config.max_body_bytes:
                return None
            if message["type"] != "http.request" or not message.get("more_body", False):
                return messages


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    """The messages read already, then those that follow."""
    left = iter(messages)

    async def following() -> Message:
        message = next(left, None)
        return await receive() if message is None else message

    return following


async def _refuse(send: Send, status: int, text: str, code: str | None = None) -> None:
    body = json.dumps(error_body(text, status, code=code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
