"""LFM2's and LFM2.5's calls of tools: a list of calls in Python's notation, or of JSON objects if
the prompt asks for that.

https://docs.liquid.ai/lfm/key-concepts/tool-use
"""

import ast
import json
from collections.abc import Sequence
from typing import Any

from dspark.text.tool_format import Functions, ToolCall, ToolFormat

OPEN, CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"
_JSON_NAMES = {"true": True, "false": False, "null": None}


def read_calls(text: str, functions: Functions) -> list[ToolCall] | None:
    """Nothing of it is run."""
    try:
        listed = ast.parse(text.strip(), mode="eval").body
        found = listed.elts if isinstance(listed, ast.List) else [listed]
        return [_call(each) for each in found]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        return None


def _call(node: ast.expr) -> ToolCall:
    """Raises ValueError if it is no call, or its arguments have no names."""
    if isinstance(node, ast.Dict):
        call = _value(node)
        return ToolCall(str(call["name"]), json.dumps(call.get("arguments", {})))
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with named arguments")
    values = {str(each.arg): _value(each.value) for each in node.keywords if each.arg is not None}
    if len(values) < len(node.keywords):
        raise ValueError("an argument without a name")
    return ToolCall(ast.unparse(node.func), json.dumps(values))


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in _JSON_NAMES:
        return _JSON_NAMES[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(each) for each in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        pairs = zip(node.keys, node.values, strict=True)
        return {str(_value(key)): _value(value) for key, value in pairs if key is not None}
    return ast.literal_eval(node)


def write_calls(calls: Sequence[ToolCall]) -> str:
    return f"{OPEN}[{', '.join(_written(call) for call in calls)}]{CLOSE}"


def _written(call: ToolCall) -> str:
    arguments = json.loads(call.arguments)
    return f"{call.name}({', '.join(f'{key}={_literal(v)}' for key, v in arguments.items())})"


def _literal(value: Any) -> str:
    """Texts as JSON writes them, which Python reads, too."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


LFM = ToolFormat("LFM2.5", OPEN, CLOSE, read_calls, (OPEN, CLOSE), write=write_calls)
