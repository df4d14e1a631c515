"""A prompt as a library user writes it, and the text of an answer's events."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypedDict

from dspark.config import MAX_TOKENS, Effort, SamplingChoice, SamplingConfig, StopConfig
from dspark.engine.request import Request
from dspark.errors import InputError
from dspark.events import Event, Finished
from dspark.text.stream import TextCodec

Prompt = str | Sequence[Mapping[str, str]]


class TextOptions(TypedDict, total=False):
    """Sampling, stops and form of an answer. Missing fields are a SamplingConfig's or StopConfig's
    default: greedy, and at most MAX_TOKENS tokens; max_tokens None sets no limit.

    `stop` is one stop string or several. `plain` decodes without drafts; `raw` sends a prompt
    without the chat template and shows the marks of thinking.
    """

    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    max_tokens: int | None
    stop: str | Sequence[str]
    plain: bool
    raw: bool


def text_request(codec: TextCodec, prompt: Prompt, options: TextOptions) -> Request:
    """Raises InputError for an empty prompt or an option out of range."""
    is_raw = options.get("raw", False)
    choice = SamplingChoice(
        options.get("temperature"), options.get("top_k"), options.get("top_p"), options.get("seed")
    )
    stop = options.get("stop", ())
    stopping = StopConfig(
        max_tokens=options.get("max_tokens", MAX_TOKENS),
        strings=(stop,) if isinstance(stop, str) else tuple(stop),
    )
    sampling = choice.over(SamplingConfig())
    _check(sampling, stopping)
    prompt_ids = tuple(encode_prompt(codec, prompt, is_raw=is_raw))
    return Request(prompt_ids, sampling, stopping, options.get("plain", False), is_raw)


def encode_prompt(
    codec: TextCodec, prompt: Prompt, *, is_raw: bool = False, effort: Effort | None = None
) -> list[int]:
    """Text goes through the chat template if the model has one, unless `is_raw`; messages always
    do. Raises InputError for an effort that the template does not have."""
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise InputError("the prompt is empty", "Give a text, or a list of messages.")
    if not isinstance(prompt, str):
        return codec.encode_chat(prompt, effort=effort)
    if is_raw or not (codec.has_chat_template or effort):
        return codec.encode(prompt)
    return codec.encode_chat([{"role": "user", "content": prompt}], effort=effort)


def answer_texts(events: Iterable[Event]) -> Iterator[str]:
    """The answer's text as it becomes final; thinking is left out."""
    for event in events:
        if isinstance(event, Finished):
            text = "" if event.ends_thinking else event.tail
        else:
            text = "".join(piece.text for piece in event.pieces if not piece.is_thinking)
        if text:
            yield text


def _check(sampling: SamplingConfig, stop: StopConfig) -> None:
    for is_sound, what, hint in (
        (sampling.temperature >= 0, "a temperature is at least 0", "0 takes the likeliest token."),
        (sampling.top_k >= 0, "top_k is at least 0", "0 keeps every token."),
        (0 < sampling.top_p <= 1, "top_p is above 0, up to 1", "1 keeps every token."),
        (sampling.seed is None or sampling.seed >= 0, "a seed is at least 0", "None draws anew."),
        (
            stop.max_tokens is None or stop.max_tokens > 0,
            "max_tokens is at least 1",
            "None sets no limit.",
        ),
        ("" not in stop.strings, "a stop string needs a text", "Leave it out."),
    ):
        if not is_sound:
            raise InputError(what, hint)
