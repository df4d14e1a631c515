"""Gemma 4's calls of tools: `call:name{key:value,...}`, keys bare, texts between quotes of their
own, which are a token, so that nothing in a text is escaped.

https://ai.google.dev/gemma/docs/capabilities/text/function-calling-gemma4
"""

import json
import re
from typing import Any

from dspark.text.tool_format import Functions, ToolCall, ToolFormat

OPEN, CLOSE, QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
_CALL = re.compile(r"\s*call:\s*([^\s{}]+)\s*(\{.*\})\s*", re.DOTALL)
_BARE = re.compile(r"[^,{}\[\]]*")


def read_call(text: str, functions: Functions) -> list[ToolCall] | None:
    found = _CALL.fullmatch(text)
    if found is None:
        return None
    reader = _Reader(found[2])
    try:
        arguments = reader.value()
    except (ValueError, RecursionError):
        return None
    return [ToolCall(found[1], json.dumps(arguments))] if reader.is_done else None


class _Reader:
    """Raises ValueError at what is no value."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    @property
    def is_done(self) -> bool:
        return not self._text[self._at :].strip()

    def value(self) -> Any:
        if self._take("{"):
            return dict(self._items("}", self._pair))
        if self._take("["):
            return list(self._items("]", self.value))
        if self._take(QUOTE):
            return self._until(QUOTE)
        bare = self._bare()
        try:
            return json.loads(bare)
        except ValueError:
            if not bare:
                raise
            return bare  # a text whose quotes were left out

    def _pair(self) -> tuple[str, Any]:
        key = self._until(QUOTE) if self._take(QUOTE) else None
        before = self._until(":").strip()
        return before if key is None else key, self.value()

    def _items(self, end: str, item: Any) -> Any:
        while not self._take(end):
            yield item()
            if not self._take(","):
                if not self._take(end):
                    raise ValueError(f"no {end} at {self._at}")
                return

    def _bare(self) -> str:
        found = _BARE.match(self._text, self._at)
        assert found is not None, "it may be empty"
        self._at = found.end()
        return found[0].strip()

    def _until(self, mark: str) -> str:
        end = self._text.index(mark, self._at)
        text, self._at = self._text[self._at : end], end + len(mark)
        return text

    def _take(self, mark: str) -> bool:
        rest = self._text[self._at :]
        blank = len(rest) - len(rest.lstrip())
        if not rest.startswith(mark, blank):
            return False
        self._at += blank + len(mark)
        return True


GEMMA = ToolFormat("Gemma 4", OPEN, CLOSE, read_call, (OPEN, CLOSE, QUOTE))
