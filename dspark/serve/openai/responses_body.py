"""The body of a request to /v1/responses."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from dspark.config import Effort, StopConfig
from dspark.engine.session import Session
from dspark.errors import InputError
from dspark.serve.openai.common_body import (
    AS_WHOLE,
    MOST_LOGPROBS,
    CommonBody,
    UnsupportedParameterError,
    effort_of,
)
from dspark.serve.openai.tool_use import ToolUse

Json = dict[str, Any]
LOGPROBS, REASONING = "message.output_text.logprobs", "reasoning.encrypted_content"


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    type: str
    text: str | None = None
    refusal: str | None = None


Content = str | list[_Part]


class MessageItem(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class CallItem(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str = "{}"


class OutputItem(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["function_call_output"]
    call_id: str
    output: Content


class ReasoningItem(BaseModel):
    """Of an earlier answer; templates leave it out."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["reasoning"]


def _type_of(item: Any) -> str:
    given = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return given if isinstance(given, str) else ""


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_type_of),
]


class FunctionTool(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None

    def plain(self) -> Json:
        """As chat templates take it."""
        stated = {"description": self.description, "parameters": self.parameters}
        known = {name: value for name, value in stated.items() if value is not None}
        return {"type": "function", "function": {"name": self.name, **known}}


class NamedTool(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["function"]
    name: str


class TextFormat(BaseModel):
    """`name`, `schema` and `strict` of json_schema stand beside its type."""

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    answer_schema: Json | None = Field(None, alias="schema")


class TextOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    effort: Effort | None = None
    summary: None = None


class ResponsesBody(CommonBody):
    """POST /v1/responses. Answers are not kept, so previous_response_id is refused."""

    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1), AS_WHOLE] | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    text: TextOptions | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS), AS_WHOLE] | None = None
    metadata: dict[str, str] | None = None
    reasoning: ReasoningOptions | None = None

    def effort(self, session: Session) -> Effort | None:
        """As ChatBody.effort."""
        stated = None if self.reasoning is None else self.reasoning.effort
        return effort_of(session, stated, "reasoning")

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None

    def stopping(self, default: int | None) -> StopConfig:
        return StopConfig(max_tokens=self.max_output_tokens or default)

    def check(self) -> None:
        """Raises UnsupportedParameterError for what may not be included in an answer."""
        if self.tells_rounds:
            raise UnsupportedParameterError("dspark.rounds", "Use chat completions for it.")
        for name in self.include or ():
            if name not in (LOGPROBS, REASONING):
                raise UnsupportedParameterError("include")

    def messages(self) -> list[Json]:
        """For the chat template. Calls join the assistant's words before them."""
        given = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            return [*given, {"role": "user", "content": self.input}]
        messages: list[Json] = given
        for item in self.input:
            match item:
                case MessageItem():
                    role = "system" if item.role == "developer" else item.role
                    messages.append({"role": role, "content": _text(item.content)})
                case CallItem():
                    _add_call(messages, item)
                case OutputItem():
                    content = _text(item.output)
                    result = {"role": "tool", "tool_call_id": item.call_id, "content": content}
                    messages.append(result)
        return messages

    def tool_use(self) -> ToolUse:
        """As ChatBody.tool_use."""
        offered = [tool.plain() for tool in self.tools or ()]
        if isinstance(self.tool_choice, NamedTool):
            return ToolUse.chosen(offered, None, self.tool_choice.name)
        return ToolUse.chosen(offered, self.tool_choice)

    def answer_schema(self) -> Json | None:
        """That the answer must follow; None for any text."""
        wanted = self.text.format if self.text is not None else None
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return {"type": "object"}
        if wanted.answer_schema is None:
            raise InputError("text.format of type json_schema needs a schema")
        return wanted.answer_schema


def _add_call(messages: list[Json], item: CallItem) -> None:
    try:
        arguments = json.loads(item.arguments)
    except ValueError:
        arguments = item.arguments
    function = {"name": item.name, "arguments": arguments}
    call = {"id": item.call_id, "type": "function", "function": function}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    messages[-1].setdefault("tool_calls", []).append(call)


def _text(content: Content) -> str:
    """Raises InputError for anything but text."""
    if isinstance(content, str):
        return content
    for part in content:
        if part.text is None and part.refusal is None:
            raise InputError(f"content of type {part.type[:40]} is not supported", "Send text.")
    return "".join(part.text or part.refusal or "" for part in content)
