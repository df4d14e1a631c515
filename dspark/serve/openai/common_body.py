"""What OpenAI's requests have in common: the fields that are heeded, and how others are refused."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dspark.config import Effort, LogitsConfig, SamplingChoice, SamplingConfig, StopConfig
from dspark.engine.request import Request
from dspark.engine.session import Session
from dspark.errors import InputError
from dspark.text.grammar import Grammar

# accepted, since they change no token
IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier"),
        *("stream_options", "prompt_cache_key", "prompt_cache_retention", "cache_prompt"),
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
    "verbosity": (None,),
    "web_search_options": (None,),
    "best_of": (1, None),
    "echo": (False, None),
    "suffix": ("", None),
    "previous_response_id": (None,),
    "conversation": (None,),
    "prompt": (None,),
    "background": (False, None),
    "max_tool_calls": (None,),
    "truncation": ("disabled", None),
}


# JSON does not tell 1.0 from 1
AS_WHOLE = BeforeValidator(lambda n: int(n) if isinstance(n, float) and n.is_integer() else n)


Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
MOST_LOGPROBS = 20
MOST_TOP_K = 2**31 - 1  # more keeps all, too
TokenId = Annotated[str, Field(pattern="^[0-9]{1,9}$")]


class UnsupportedParameterError(InputError):
    """A parameter that this server does not heed; `parameter` names it."""

    def __init__(self, parameter: str, hint: str = "Leave it out.") -> None:
        super().__init__(f"{parameter[:80]} is not supported", hint)
        self.parameter = parameter


def effort_of(session: Session, stated: Effort | None, parameter: str) -> Effort | None:
    """Raises UnsupportedParameterError where the model's chat template has no levels."""
    if stated is not None and not session.has_effort:
        raise UnsupportedParameterError(parameter, "This model has no levels of effort.")
    return stated


class DSparkOptions(BaseModel):
    """dspark's own extension of a request."""

    model_config = ConfigDict(strict=True, extra="forbid")

    rounds: bool = Field(False, description="Send every round; see docs/rounds.md.")
    plain: bool = Field(False, description="Decode without drafts.")


class CommonBody(BaseModel):
    """What chats, completions and responses have in common."""

    # others are told by name in `_refuse_unheeded`, so the description allows none
    model_config = ConfigDict(
        strict=True, extra="allow", json_schema_extra={"additionalProperties": False}
    )

    model: str
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1), AS_WHOLE] | None = Field(
        None, description="-1 and 0 keep all."
    )
    seed: Annotated[int, AS_WHOLE] | None = None  # modulo 2 ** 64
    logit_bias: dict[TokenId, Bias] | None = Field(None, description="By token id.")
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    dspark: DSparkOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_half_characters(cls, data: Any) -> Any:
        """JSON can state halves of characters, which no text has."""
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InputError("the body has half a character: a lone surrogate") from None
        return data

    @model_validator(mode="after")
    def _refuse_unheeded(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name not in IGNORED and not _is_neutral(name, value):
                raise UnsupportedParameterError(name)
        return self

    @property
    def num_choices(self) -> int:
        return 1

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

    def stopping(self, default: int | None) -> StopConfig:
        """default: the most tokens if none are given."""
        return StopConfig(max_tokens=default)

    def sampling(self, defaults: SamplingConfig, choice: int) -> SamplingConfig:
        """Of the choice with this index: with a seed, each has the next one."""
        top_k = None if self.top_k is None else min(max(self.top_k, 0), MOST_TOP_K)
        seed = None if self.seed is None else (self.seed + choice) % 2**64
        return SamplingChoice(self.temperature, top_k, self.top_p, seed).over(defaults)

    def logits(self) -> LogitsConfig:
        return LogitsConfig(
            tuple((int(key), value) for key, value in (self.logit_bias or {}).items()),
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
        calls_tools: bool = False,
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
                calls_tools,
            )
            for choice in range(self.num_choices)
        ]


def _is_neutral(name: str, value: Any) -> bool:
    neutral = NEUTRAL.get(name, ())
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral
    )
