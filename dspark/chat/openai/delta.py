"""One chunk of an answer in OpenAI's protocol, in the variants that servers use."""

import json
from dataclasses import dataclass, field
from typing import Any

from dspark.chat.control_characters import one_line
from dspark.errors import ServerError
from dspark.events import PrefillProgress, Round
from dspark.round_records import read_round

Json = dict[str, Any]
THINKING_FIELDS = ("reasoning_content", "reasoning", "reasoning_text", "thinking")
CHECK = "Check the URL and that the server speaks OpenAI's chat protocol."


@dataclass(frozen=True, slots=True)
class Delta:
    """The content that a chunk adds to an answer. `reason` is set in the last chunk, `round` by a
    server that tells how its tokens came about."""

    text: str = ""
    thinking: str = ""
    reason: str | None = None
    tools: tuple[str, ...] = ()
    usage: Json = field(default_factory=dict)
    round: PrefillProgress | Round | None = None


def read_delta(chunk: Json, server: str) -> Delta:
    """From a part (`delta`) or the whole (`message`). Raises ServerError for an error or odd shape.

    Any field may be null or missing.
    """
    choices = chunk.get("choices")
    if choices is not None and not isinstance(choices, list):
        raise _odd(server, "choices", choices)
    choice = _object(server, "a choice", choices[0] if choices else None)
    reason = choice.get("finish_reason")
    if chunk.get("error") or chunk.get("object") == "error" or reason == "error":
        raise ServerError(f"{server} failed during the answer{error_text(chunk)}")
    message = _object(server, "message", choice.get("delta") or choice.get("message"))
    usage = chunk.get("usage")
    return Delta(
        text=_text_of(server, message.get("content")) + _text_of(server, message.get("refusal")),
        thinking=_thinking(message),
        reason=reason if isinstance(reason, str) else None,
        tools=_tools(message),
        usage=usage if isinstance(usage, dict) else {},
        round=_round(server, chunk.get("dspark")),
    )


def _round(server: str, record: Any) -> PrefillProgress | Round | None:
    if not isinstance(record, dict) or record.get("type") not in ("prompt", "round"):
        return None
    try:
        return read_round(record, request_id=0)
    except (KeyError, TypeError, ValueError):
        raise ServerError(
            f"{server} tells its rounds in another format", "Update dspark, here or there."
        ) from None


def _text_of(server: str, content: Any) -> str:
    """A string, or a list of parts, whose non-text parts are skipped."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise _odd(server, "content", content)
    parts = (part if isinstance(part, dict) else {"text": part} for part in content)
    return "".join(
        _text_of(server, part.get(name)) for part in parts for name in ("text", "refusal")
    )


def _thinking(message: Json) -> str:
    """Servers that send it under two names send the same text twice."""
    content = message.get("content")
    parts = (
        [each for each in content if isinstance(each, dict)] if isinstance(content, list) else []
    )
    inside = "".join(_thought(each.get(n)) for each in parts for n in ("thinking", "reasoning"))
    return next(filter(None, (_thought(message.get(name)) for name in THINKING_FIELDS)), inside)


def _thought(value: Any) -> str:
    """A string or a list of parts; anything else is ignored."""
    if isinstance(value, list):
        return "".join(_thought(each.get("text")) for each in value if isinstance(each, dict))
    return value if isinstance(value, str) else ""


def _tools(message: Json) -> tuple[str, ...]:
    """Names of the tools that a model calls; later chunks of a call have no name."""
    calls = message.get("tool_calls")
    calls = [*calls] if isinstance(calls, list) else []
    calls.append({"function": message.get("function_call")})
    functions = [call.get("function") for call in calls if isinstance(call, dict)]
    names = [each.get("name") for each in functions if isinstance(each, dict)]
    return tuple(one_line(name, 60) for name in names if isinstance(name, str) and name)


def _object(server: str, what: str, value: Any) -> Json:
    if value is None or isinstance(value, dict):
        return value or {}
    raise _odd(server, what, value)


def _odd(server: str, what: str, value: Any) -> ServerError:
    match value:
        case dict():
            shape = "an object"
        case list():
            shape = "a list"
        case str():
            shape = "a string"
        case _:
            shape = json.dumps(value)
    return ServerError(f"{server} sent an answer whose {what} is {shape}", CHECK)


def error_text(said: Any) -> str:
    """A colon and the server's message, or nothing, from any common form of error."""
    text = _said(said)
    return f": {one_line(text)}" if text.strip() else ""


def _said(value: Any) -> str:
    match value:
        case str():
            return value
        case {"error": inner} | {"message": inner} | {"msg": inner} | {"detail": inner} if inner:
            return _said(inner)
        case [first, *_]:
            return _said(first)
    return ""
