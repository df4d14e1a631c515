"""A model's calls of tools in its text, between marks: JSON (Hermes, Qwen3) or tags (Qwen3-Coder).

https://huggingface.co/NousResearch/Hermes-2-Pro-Llama-3-8B describes the former, the chat template
of https://huggingface.co/Qwen/Qwen3-Coder-30B-A3B-Instruct the latter.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>(.*?)(?:</function>\s*)?", re.DOTALL)
_PARAMETER = re.compile(
    r"\s*<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)\s*", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is JSON text."""

    name: str
    arguments: str


def knows_tools(template: str) -> bool:
    """Whether a chat template offers tools, and asks for calls in this form."""
    return OPEN in template and "tools" in template


def call_grammar(tools: Sequence[Mapping[str, Any]]) -> str:
    """In Lark's language: one call of one of these tools, as JSON schemas of functions."""
    calls = [_call_schema(tool["function"]) for tool in tools]
    return (
        f"start: {json.dumps(OPEN)} NL call NL {json.dumps(CLOSE)}\n"
        f'NL: "\\n"\ncall: %json {json.dumps({"anyOf": calls})}\n'
    )


def _call_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("parameters") or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


class ToolCallReader:
    """Splits text into text and calls as it comes. A call of neither form stays text."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        """tools: those offered, whose schemas say which parameters in tags are text."""
        self._functions = {tool["function"]["name"]: tool["function"] for tool in tools}
        self._held = ""  # may begin a call, or is inside one
        self._is_inside = False
        self._num_calls = 0

    def push(self, text: str) -> Iterator[str | ToolCall]:
        self._held += text
        while True:
            mark = CLOSE if self._is_inside else OPEN
            before, found, after = self._held.partition(mark)
            if not found:
                break
            self._held = after
            yield from self._call(before) if self._is_inside else self._text(before.rstrip())
            self._is_inside = not self._is_inside
        if not self._is_inside:
            kept = self._held[self._undecided() :]
            text, self._held = self._held[: len(self._held) - len(kept)], kept
            yield from self._text(text)

    def finish(self) -> Iterator[str | ToolCall]:
        """The rest, at the end of the answer; some models leave the last mark out."""
        rest, self._held = self._held, ""
        if self._is_inside:
            yield from self._call(rest)
        elif rest.strip() or not self._num_calls:
            yield from self._text(rest)

    def _undecided(self) -> int:
        """Where the text begins that a mark may follow, or that begins a mark."""
        held = self._held
        return next(at for at in range(len(held) + 1) if OPEN.startswith(held[at:].lstrip()))

    def _text(self, text: str) -> Iterator[str]:
        if text:
            yield text

    def _call(self, text: str) -> Iterator[str | ToolCall]:
        call = _of_json(text) or self._of_tags(text)
        if call is None:
            yield f"{OPEN}{text}{CLOSE}"
            return
        self._num_calls += 1
        yield call

    def _of_tags(self, text: str) -> ToolCall | None:
        found = _FUNCTION.fullmatch(text)
        if found is None:
            return None
        name, inside = found.groups()
        schemas = (self._functions.get(name, {}).get("parameters") or {}).get("properties", {})
        arguments, at = {}, 0
        for parameter in _PARAMETER.finditer(inside):
            if parameter.start() != at:
                return None
            key, value = parameter.groups()
            arguments[key] = _value(value, schemas.get(key))
            at = parameter.end()
        return ToolCall(name, json.dumps(arguments)) if not inside[at:].strip() else None


def _of_json(text: str) -> ToolCall | None:
    try:
        call = json.loads(text)
        name, arguments = call["name"], call.get("arguments", {})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return ToolCall(str(name), arguments if isinstance(arguments, str) else json.dumps(arguments))


def _value(text: str, schema: Any) -> Any:
    """Text, unless the schema of the parameter says that it is something else."""
    kind = schema.get("type", "string") if isinstance(schema, Mapping) else "string"
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
