"""Requests to a chat server; every failure is a ServerError in one line."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from dspark.chat.openai.delta import CHECK, error_text
from dspark.chat.openai.reply import no_answer
from dspark.chat.openai.request import (
    KEY,
    endpoint,
    key_header,
    shown_url,
)
from dspark.config import ServerConfig
from dspark.errors import InputError, ServerError
from dspark.http_client import make_async_client, proxy_for

_CONTEXT_FULL = re.compile(
    r"context_length_exceeded|exceed_context_size|(maximum|max|exceeds?).{0,30}context"
    r"|context (length|size|window).{0,30}exceed|prompt is too long",
    re.IGNORECASE,
)


@asynccontextmanager
async def requested(
    config: ServerConfig, base: str, method: str, path: str, body: Any = None
) -> AsyncIterator[httpx.Response]:
    """A response whose body is still to come."""
    url, shown = endpoint(base, path), shown_url(base)
    options = {
        "timeout": httpx.Timeout(config.silent_seconds, connect=config.connect_seconds),
        "headers": key_header(),
        "verify": url.startswith("https"),  # reading the certificates takes a tenth of a second
    }
    try:
        async with (
            make_async_client(url, **options) as client,
            client.stream(method, url, json=body) as response,
        ):
            yield response
    except httpx.ProxyError as error:
        raise ServerError(
            f"the proxy for {shown} refused ({error})", "Check HTTP_PROXY, or set NO_PROXY."
        ) from None
    except httpx.ConnectError as error:
        raise _unreachable(url, shown, error) from None
    except httpx.TimeoutException:
        raise ServerError(
            f"{shown} took too long to answer", "Check the server, then ask again."
        ) from None
    except httpx.InvalidURL:
        raise InputError(
            f"{shown} is not a valid URL", "For example http://localhost:8000."
        ) from None
    except httpx.DecodingError:
        raise ServerError(f"{shown} sent data that cannot be decompressed", CHECK) from None
    except httpx.HTTPError:
        raise no_answer(shown) from None


def _unreachable(url: str, shown: str, error: httpx.ConnectError) -> ServerError:
    reason = str(error)
    if "SSL" in reason:
        return ServerError(
            f"no secure connection to {shown} ({reason})",
            "Check http or https; SSL_CERT_FILE adds your own certificates.",
        )
    if proxy := proxy_for(url):
        return ServerError(
            f"{shown} cannot be reached through the proxy {proxy}",
            "Check the proxy, or name the host in NO_PROXY.",
        )
    return ServerError(f"nothing answers at {shown}", "Start the server, or check the URL.")


def refusal(response: httpx.Response, said: Any, shown: str, model: str | None) -> ServerError:
    """The error for an unsuccessful response; `model` is None while requesting the list of
    models."""
    code, text = response.status_code, error_text(said)
    match code:
        case 401 | 403:
            is_set = bool(key_header())
            hint = f"Check {KEY}." if is_set else f"Set {KEY} to your key."
            return ServerError(f"{shown} answered {code}: access denied{text}", hint)
        case 404 if model is None:
            return ServerError(
                f"{shown} has no list of models", "Check the URL; it often ends in /v1."
            )
        case 404:
            return ServerError(
                f"{shown} has no model {model}{text}", "Leave out --model to see its models."
            )
        case 429 | 503:
            return ServerError(f"{shown} answered {code}{text}", _when(response))
    if response.is_redirect:
        target = response.headers.get("location", "").removesuffix("/models")
        return ServerError(f"{shown} answered {code}: it has moved", f"Give --server {target}.")
    return ServerError(f"{shown} answered {code}{text}")


def is_context_full(code: int, said: Any) -> bool:
    """Recognised by servers' usual wording; older messages can then be left out."""
    text = json.dumps(said)
    is_limit = re.search(r"max_(completion_)?tokens\W.{0,20}too large", text) is not None
    return code in (400, 413, 422) and not is_limit and _CONTEXT_FULL.search(text) is not None


def _when(response: httpx.Response) -> str:
    """When to retry, from seconds or a date."""
    after = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(after)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return "Try again later."
    seconds = max(round(seconds), 1)
    return f"Try again in {seconds} second{'s' * (seconds != 1)}."


async def body_of(response: httpx.Response) -> Any:
    """JSON, or the text of a short response that is not JSON."""
    raw = await response.aread()
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        is_page = "html" in response.headers.get("content-type", "")
        return "" if is_page else raw.decode("utf-8", errors="replace")
