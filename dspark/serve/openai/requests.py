"""Bodies of OpenAI's requests: the fields that are heeded, and how any other is refused."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dspark.config import LogitsConfig, SamplingChoice, SamplingConfig, StopConfig
from dspark.engine.request import Request
from dspark.errors import InputError
from dspark.serve.openai.tool_use import ToolUse
from dspark.text.grammar import Grammar

MOST_CHOICES = 16
MOST_STOPS = 16
# accepted, since they change no token
IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention", "cache_prompt"),
    }
)
# accepted with the value that means "not used"
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "min_p": (0, None),
    "logprobs": (False, None),
    "top_logprobs": (0, None),
    "response_format": ({"type": "text"}, None),
    "parallel_tool_calls": (True, False, None),
    "functions": ([], None),
    "function_call": ("none", "auto", None),
    "modalities": (["text"], None),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
    "best_of": (1, None),
    "echo": (False, None),
    "suffix": ("", None),
}


# JSON does not tell 1.0 from 1
WholeNumber = Annotated[
    int, BeforeValidator(lambda n: int(n) if isinstance(n, float) and n.is_integer() else n)
]


Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
MOST_LOGPROBS = 20


class UnsupportedParameterError(InputError):
    """A parameter that this server does not heed; `parameter` names it."""

    def __init__(self, parameter: str, hint: str = "Leave it out.") -> None:
        super().__init__(f"{parameter} is not supported", hint)
        self.parameter = parameter


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class DSparkOptions(BaseModel):
    """dspark's own extension of a request."""

    model_config = ConfigDict(strict=True, extra="forbid")

    rounds: bool = Field(False, description="Send every round; see docs/rounds.md.")
    plain: bool = Field(False, description="Decode without drafts.")


class DecodingBody(BaseModel):
    """What chats and completions have in common."""

    # others are told by name in `_refuse_unheeded`, so the description allows none
    model_config = ConfigDict(
        strict=True, extra="allow", json_schema_extra={"additionalProperties": False}
    )

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[WholeNumber, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[WholeNumber, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[WholeNumber, Field(ge=-1)] | None = Field(
        None, description="-1 and 0 keep all."
    )
    seed: WholeNumber | None = None  # modulo 2 ** 64
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    n: Annotated[WholeNumber, Field(ge=1, le=MOST_CHOICES)] | None = None
    logit_bias: dict[str, Bias] | None = Field(None, description="By token id.")
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    dspark: DSparkOptions | None = None

    @model_validator(mode="after")
    def _refuse_unheeded(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name not in IGNORED and not _is_neutral(name, value):
                raise UnsupportedParameterError(name)
        return self

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are told with each; None: no log-probabilities."""
        return None

    @property
    def tells_rounds(self) -> bool:
        return self.dspark is not None and self.dspark.rounds

    @property
    def is_plain(self) -> bool:
        return self.dspark is not None and self.dspark.plain

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, defaults: SamplingConfig, choice: int) -> SamplingConfig:
        """Of the choice with this index: with a seed, each has the next one."""
        top_k = None if self.top_k is None else max(self.top_k, 0)
        seed = None if self.seed is None else (self.seed + choice) % 2**64
        return SamplingChoice(self.temperature, top_k, self.top_p, seed).over(defaults)

    def logits(self) -> LogitsConfig:
        """Raises InputError for a key that is no token id."""
        bias = self.logit_bias or {}
        if wrong := next((key for key in bias if not key.isdecimal()), None):
            raise InputError(f"logit_bias: {wrong[:40]} is not a token id")
        return LogitsConfig(
            tuple((int(key), value) for key, value in bias.items()),
            self.presence_penalty or 0.0,
            self.frequency_penalty or 0.0,
            1.0 if self.repetition_penalty is None else self.repetition_penalty,
        )

    def requests(
        self,
        prompt_ids: Sequence[int],
        defaults: SamplingConfig,
        max_tokens: int | None,
        *,
        is_raw: bool = False,
        grammar: Grammar | None = None,
    ) -> list[Request]:
        """One for each choice. max_tokens: if none is given."""
        return [
            Request(
                tuple(prompt_ids),
                self.sampling(defaults, choice),
                self.stopping(max_tokens),
                self.is_plain,
                is_raw,
                self.logits(),
                grammar,
                self.num_logprobs,
            )
            for choice in range(self.num_choices)
        ]

    def stopping(self, default: int | None) -> StopConfig:
        """Raises InputError for an empty stop string."""
        given = self.max_completion_tokens or self.max_tokens or default
        strings = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if "" in strings:
            raise InputError("a stop string needs a text", "Leave it out.")
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
    top_logprobs: Annotated[WholeNumber, Field(ge=0, le=MOST_LOGPROBS)] | None = None

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
    logprobs: Annotated[WholeNumber, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(each, int) for each in self.prompt):
            return [[each for each in self.prompt if isinstance(each, int)]]
        return [each for each in self.prompt if not isinstance(each, int)]


def _is_neutral(name: str, value: Any) -> bool:
    neutral = NEUTRAL.get(name, ())
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral
    )
