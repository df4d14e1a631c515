"""gpt-oss's calls of tools (the harmony format): a message to functions.NAME, whose text is JSON.

https://cookbook.openai.com/articles/openai-harmony describes it. The marks are special tokens, and
the recipient may stand before the channel or behind it; `text/channels.py` brings each call into
one form, which is read here.
"""

import json
import re

from dspark.text.tool_format import Functions, ToolCall, ToolFormat

OPEN, MESSAGE, CLOSE = "<|channel|>commentary to=functions.", "<|message|>", "<|call|>"
RECIPIENT = re.compile(r"to=functions\.([^\s<]+)")


def read_call(text: str, functions: Functions) -> list[ToolCall] | None:
    name, mark, arguments = text.partition(MESSAGE)
    arguments = arguments.strip()
    if not mark or not isinstance(_parsed(arguments), dict):
        return None
    return [ToolCall(name, arguments)]


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


HARMONY = ToolFormat("gpt-oss", OPEN, CLOSE, read_call, one_by_one=True)
