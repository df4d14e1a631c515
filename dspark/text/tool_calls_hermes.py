"""Calls of tools as JSON (Hermes, Qwen3) or tags (Qwen3-Coder, Qwen3.5) between two marks.

https://huggingface.co/NousResearch/Hermes-2-Pro-Llama-3-8B describes the former, the chat template
of https://huggingface.co/Qwen/Qwen3-Coder-30B-A3B-Instruct the latter.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dspark.text.grammar import JSON_OPTIONS
from dspark.text.tool_format import Functions, ToolCall, ToolFormat

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>(.*?)(?:</function>\s*)?", re.DOTALL)
_PARAMETER = re.compile(
    r"\s*<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)\s*", re.DOTALL
)


def call_grammar(tools: Sequence[Mapping[str, Any]]) -> str:
    """In Lark's language: one call of one of these tools, as JSON schemas of functions."""
    calls = [_call_schema(tool["function"]) for tool in tools]
    schema = {"anyOf": calls, "x-guidance": JSON_OPTIONS}
    return (
        f"start: {json.dumps(OPEN)} NL call NL {json.dumps(CLOSE)}\n"
        f'NL: "\\n"\ncall: %json {json.dumps(schema)}\n'
    )


def _call_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("parameters") or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def read_call(text: str, functions: Functions) -> list[ToolCall] | None:
    call = _of_json(text) or _of_tags(text, functions)
    return None if call is None else [call]


def _of_json(text: str) -> ToolCall | None:
    try:
        call = json.loads(text)
        name, arguments = call["name"], call.get("arguments", {})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return ToolCall(str(name), arguments if isinstance(arguments, str) else json.dumps(arguments))


def _of_tags(text: str, functions: Functions) -> ToolCall | None:
    found = _FUNCTION.fullmatch(text)
    if found is None:
        return None
    name, inside = found.groups()
    schemas = (functions.get(name, {}).get("parameters") or {}).get("properties", {})
    arguments, at = {}, 0
    for parameter in _PARAMETER.finditer(inside):
        if parameter.start() != at:
            return None
        key, value = parameter.groups()
        arguments[key] = _value(value, schemas.get(key))
        at = parameter.end()
    return ToolCall(name, json.dumps(arguments)) if not inside[at:].strip() else None


def _value(text: str, schema: Any) -> Any:
    """Text, unless the schema of the parameter says that it is something else."""
    kind = schema.get("type", "string") if isinstance(schema, Mapping) else "string"
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


HERMES = ToolFormat("Qwen and Hermes", OPEN, CLOSE, read_call, (OPEN, CLOSE), call_grammar)
