"""Conversations rendered by the model's chat template."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType
from typing import Any

from dspark.checkpoints.files import one_line
from dspark.config import Effort
from dspark.errors import InputError
from dspark.text.tool_format import ToolCall, ToolFormat

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]
THINKING_SWITCH = "enable_thinking"  # the variable by which templates turn thinking on and off
EFFORT = "reasoning_effort"  # the variable by which templates are told how much to think
PLACE = "dspark-answer"  # placeholder for a message when only the template's output matters
RAW = "dspark generate --raw sends the text as it is, without the template."


class ChatTemplate:
    """The default template, or the first of several."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        stated = tokenizer.chat_template
        named = stated if isinstance(stated, dict) else {"default": stated}
        self.source: str = named.get("default") or next(iter(named.values()), None) or ""

    @property
    def has_thinking_switch(self) -> bool:
        """Whether the template lets its reader choose between thinking and not."""
        return THINKING_SWITCH in self.source

    @property
    def has_effort(self) -> bool:
        """Whether the template has levels of effort."""
        return EFFORT in self.source

    def write(
        self,
        messages: Messages,
        tools: Tools = (),
        *,
        thinking: bool | None = None,
        effort: Effort | None = None,
    ) -> str:
        """The conversation up to the assistant's turn; `tools` are JSON schemas of functions. A
        model without a system role gets the instructions at the beginning of the first prompt.
        `thinking` and `effort` None leave the template's switches alone.

        Raises InputError if there is no template, it fails or refuses the conversation, or has no
        levels of effort.
        """
        if not self.source:
            raise InputError("this model has no chat template", RAW)
        if effort is not None and not self.has_effort:
            raise InputError("this model's chat template has no levels of effort", "Leave it out.")
        switches: dict[str, Any] = {} if thinking is None else {THINKING_SWITCH: thinking}
        switches |= {} if effort is None else {EFFORT: effort}
        try:
            return self._write(messages, tools, switches)
        except Exception as error:  # a template is a program: it may refuse, and fail in any way
            raise InputError(
                f"the chat template does not accept this conversation ({one_line(error)})", RAW
            ) from error

    def behind_an_answer(self) -> str:
        """The text it writes after the assistant's words; "" if unknown."""
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PLACE}]
        try:
            return self._render(chat, is_asked=False).rpartition(PLACE)[2]
        except Exception:  # it does not accept such a chat
            return ""

    def _write(self, messages: Messages, tools: Tools, switches: Mapping[str, Any]) -> str:
        folded = _without_system(messages)
        if folded is None:
            return self._render(messages, tools, switches)
        try:
            text = self._render(messages, tools, switches)
        except Exception as error:
            try:
                return self._render(folded, tools, switches)
            except Exception:  # so the system role was not the reason
                raise error from None
        is_told = messages[0]["content"].strip() in text
        return text if is_told else self._render(folded, tools, switches)

    def _render(
        self,
        messages: Messages,
        tools: Tools = (),
        switches: Mapping[str, Any] = MappingProxyType({}),
        *,
        is_asked: bool = True,
    ) -> str:
        text: str = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=self.source,
            tools=[dict(tool) for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=is_asked,
            **switches,
        )
        return text


def with_calls_in_text(messages: Messages, form: ToolFormat, template: str) -> Messages:
    """Calls of earlier answers as their text, for a template that does not write them."""
    if form.write is None or "tool_calls" in template:
        return messages
    return [_with_calls(message, form.write) for message in messages]


def one_call_each(messages: Messages) -> Messages:
    """Answers with several calls as answers with one, each followed by its result."""
    split: list[Mapping[str, Any]] = []
    rest = [*messages]
    while rest:
        message = rest.pop(0)
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            split.append(message)
            continue
        results = [*takewhile(lambda each: each["role"] == "tool", rest)]
        del rest[: len(results)]
        for at, call in enumerate(calls):
            split.append({**message, "tool_calls": [call]} | ({"content": ""} if at else {}))
            own = [each for each in results if each.get("tool_call_id") == call.get("id")]
            split += own
            results = [each for each in results if each not in own]
        split += results
    return split


def _with_calls(
    message: Mapping[str, Any], write: Callable[[Sequence[ToolCall]], str]
) -> Mapping[str, Any]:
    functions = [call["function"] for call in message.get("tool_calls", ())]
    if not functions:
        return message
    calls = [ToolCall(each["name"], json.dumps(each["arguments"])) for each in functions]
    return {**message, "content": message["content"] + write(calls)}


def _without_system(messages: Messages) -> list[Mapping[str, str]] | None:
    """The instructions as the beginning of the first prompt; None without instructions."""
    roles = [message["role"] for message in messages[:2]]
    if roles != ["system", "user"]:
        return None
    first = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": first}, *messages[2:]]
