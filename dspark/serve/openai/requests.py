"""Bodies of chats and completions."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dspark.config import Effort, StopConfig
from dspark.engine.session import Session
from dspark.errors import InputError
from dspark.serve.openai.common_body import AS_WHOLE, MOST_LOGPROBS, CommonBody, effort_of
from dspark.serve.openai.tool_use import ToolUse

MOST_CHOICES = 16
MOST_STOPS = 16
StopString = Annotated[str, Field(min_length=1)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class DecodingBody(CommonBody):
    """What chats and completions have in common."""

    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1), AS_WHOLE] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1), AS_WHOLE] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MOST_STOPS)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES), AS_WHOLE] | None = None

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def stopping(self, default: int | None) -> StopConfig:
        given = self.max_completion_tokens or self.max_tokens or default
        strings = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return StopConfig(max_tokens=given, strings=strings)


class ContentPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    type: str
    text: str | None = None


class CalledFunction(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    name: str
    arguments: str = "{}"


class CalledTool(BaseModel):
    """A call in an earlier answer."""

    model_config = ConfigDict(strict=True, extra="ignore")

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction

    def plain(self) -> dict[str, Any]:
        """Templates take the arguments as an object."""
        try:
            arguments = json.loads(self.function.arguments)
        except ValueError:
            arguments = self.function.arguments
        called = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": self.type, "function": called}


class Function(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["function"]
    function: Function


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None

    def plain(self) -> dict[str, Any]:
        """For the chat template. Raises InputError for anything but text."""
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": self._text()}
        if self.tool_calls:
            message["tool_calls"] = [call.plain() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message

    def _text(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        for part in self.content:
            if part.text is None:
                raise InputError(f"content of type {part.type} is not supported", "Send text.")
        return "".join(part.text or "" for part in self.content)


class NamedFunction(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    name: str


class NamedTool(BaseModel):
    """tool_choice for one tool."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["function"]
    function: NamedFunction


class NamedSchema(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True)

    name: str = ""
    json_schema: dict[str, Any] = Field(alias="schema")


class TextFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text"]


class ObjectFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["json_object"]


class SchemaFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["json_schema"]
    json_schema: NamedSchema


AnswerFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class ChatBody(DecodingBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    response_format: AnswerFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS), AS_WHOLE] | None = None
    reasoning_effort: Effort | None = None

    def effort(self, session: Session) -> Effort | None:
        """How much to think. Raises UnsupportedParameterError where the model has no levels."""
        return effort_of(session, self.reasoning_effort, "reasoning_effort")

    @property
    def num_logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise InputError("top_logprobs needs logprobs", "Set logprobs to true.")
        return (self.top_logprobs or 0) if self.logprobs else None

    def tool_use(self) -> ToolUse:
        """The tools that are offered, and whether one must be called."""
        offered = [tool.model_dump(exclude_none=True) for tool in self.tools or ()]
        if isinstance(self.tool_choice, NamedTool):
            return ToolUse.chosen(offered, None, self.tool_choice.function.name)
        return ToolUse.chosen(offered, self.tool_choice)

    def answer_schema(self) -> dict[str, Any] | None:
        """That the answer must follow; None for any text."""
        match self.response_format:
            case ObjectFormat():
                return {"type": "object"}
            case SchemaFormat(json_schema=named):
                return named.json_schema
        return None


class CompletionBody(DecodingBody):
    """POST /v1/completions. A prompt is a text or token ids, or several of them."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS), AS_WHOLE] | None = None

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(each, int) for each in self.prompt):
            return [[each for each in self.prompt if isinstance(each, int)]]
        return [each for each in self.prompt if not isinstance(each, int)]
