"""DeepSeek-V4's calls of tools, in its own markup: bodies are plain text, or JSON where `string` is
"false".

https://huggingface.co/deepseek-ai/DeepSeek-V4-Flash/blob/main/encoding/README.md
"""

import json
import re

from dspark.text.tool_format import Functions, ToolCall, ToolFormat

MARK = "｜DSML｜"
OPEN, CLOSE = f"<{MARK}tool_calls>", f"</{MARK}tool_calls>"
_INVOKE = re.compile(rf'\s*<{MARK}invoke name="([^"]+)">(.*?)</{MARK}invoke>\s*', re.DOTALL)
_PARAMETER = re.compile(
    rf'\s*<{MARK}parameter name="([^"]+)" string="(true|false)">(.*?)</{MARK}parameter>\s*',
    re.DOTALL,
)


def read_calls(text: str, functions: Functions) -> list[ToolCall] | None:
    calls, at = [], 0
    while text[at:].strip():
        invoked = _INVOKE.match(text, at)
        arguments = None if invoked is None else _arguments(invoked[2])
        if invoked is None or arguments is None:
            return None
        calls.append(ToolCall(invoked[1], arguments))
        at = invoked.end()
    return calls or None


def _arguments(text: str) -> str | None:
    """As JSON; None if the text is something else."""
    found, at = {}, 0
    while text[at:].strip():
        parameter = _PARAMETER.match(text, at)
        if parameter is None:
            return None
        name, is_text, body = parameter.groups()
        try:
            found[name] = body if is_text == "true" else json.loads(body)
        except (ValueError, RecursionError):
            found[name] = body
        at = parameter.end()
    return json.dumps(found)


DSML = ToolFormat("DeepSeek-V4", OPEN, CLOSE, read_calls, (MARK,))
