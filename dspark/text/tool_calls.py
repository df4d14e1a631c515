"""A model's calls of tools in its text, in the form of Hermes and Qwen: JSON between two marks.

https://huggingface.co/NousResearch/Hermes-2-Pro-Llama-3-8B describes it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"


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
    """Splits text into text and calls as it comes. A call that is not valid JSON stays text."""

    def __init__(self) -> None:
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
        try:
            call = json.loads(text)
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            yield f"{OPEN}{text}{CLOSE}"
            return
        self._num_calls += 1
        stated = arguments if isinstance(arguments, str) else json.dumps(arguments)
        yield ToolCall(str(name), stated)
