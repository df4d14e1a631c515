"""Option definitions that several commands share, and their way into the frozen settings.

Defaults come from the settings themselves: `temperature: Temperature = SAMPLING.temperature`.
"""

import math
from typing import Annotated, Literal

import typer

from dspark.config import (
    DraftWeights,
    Dtype,
    EngineConfig,
    RuntimeConfig,
    SamplingChoice,
    SamplingConfig,
    ScheduleConfig,
    StopConfig,
)
from dspark.errors import InputError

DEFAULT_PAIR = "demo"
RUNTIME = RuntimeConfig()
SAMPLING = SamplingConfig()

SCHEDULE_HELP = "How much of a block is verified: auto weighs gain against cost, full takes all."
THRESHOLD_HELP = "Verify a block up to the first draft below this confidence; excludes --schedule."


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


PairArgument = Annotated[
    str, typer.Argument(metavar="PAIR", help="Alias of a pair or a folder; see dspark list.")
]
PairOption = Annotated[
    str, typer.Option("--pair", metavar="PAIR", help="Alias of a pair or a folder.")
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|ID", help="A target of your own: a folder or a hub id, instead of a pair."
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|ID|lookup|none",
        help="A head of your own: a folder or a hub id; lookup copies what followed the last "
        "words before; none drafts nothing.",
    ),
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Number format of the weights.")]
DraftWeightsOption = Annotated[
    DraftWeights,
    typer.Option(
        "--draft-weights",
        help="Number format of a DSpark head on a GPU; less costs acceptance, never a token.",
    ),
]
Temperature = Annotated[
    float, typer.Option(min=0.0, callback=_finite, help="0 always takes the likeliest token.")
]
TopK = Annotated[int, typer.Option(min=0, help="Sample among the k likeliest tokens; 0 is all.")]
TopP = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, callback=_finite, help="Sample within this much probability."),
]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same answer.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Most new tokens in an answer.")]
# The same, where the model's own files decide unless the user does.
OwnTemperature = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        callback=_finite,
        help="0 always takes the most likely token; without it, the model's own.",
    ),
]
OwnTopK = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Sample among the K most likely tokens, 0 means all; without it, the model's own.",
    ),
]
OwnTopP = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        callback=_finite,
        help="Sample within this much probability; without it, the model's own.",
    ),
]
OwnSeed = Annotated[int | None, typer.Option(min=0, help="The same seed gives the same answer.")]
OwnMaxTokens = Annotated[
    int | None,
    typer.Option(
        min=1, help="Maximum number of new tokens per answer; without it, up to the context."
    ),
]
StopStrings = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        help="End the answer before this text, which may name special tokens; repeatable.",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option("--confidence-threshold", min=0.0, max=1.0, callback=_finite, help=THRESHOLD_HELP),
]
ScheduleOption = Annotated[
    Literal["auto", "full"] | None, typer.Option("--schedule", help=SCHEDULE_HELP)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def sampling_config(temperature: float, top_k: int, top_p: float, seed: int) -> SamplingConfig:
    _check_top_p(top_p)
    return SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)


def sampling_choice(
    temperature: float | None, top_k: int | None, top_p: float | None, seed: int | None
) -> SamplingChoice:
    _check_top_p(top_p)
    return SamplingChoice(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)


def _check_top_p(top_p: float | None) -> None:
    if top_p == 0:
        raise InputError("--top-p 0 would keep no token", "Give a value above 0, up to 1.")


def stop_config(max_tokens: int, strings: list[str] | None) -> StopConfig:
    if strings and "" in strings:
        raise InputError("--stop needs a text", "Leave --stop out to end at the model's own stop.")
    return StopConfig(max_tokens=max_tokens, strings=tuple(strings or ()))


def engine_config(
    threshold: float | None, schedule: Literal["auto", "full"] | None
) -> EngineConfig:
    """Neither option leaves the default schedule."""
    if threshold is not None and schedule is not None:
        raise InputError(
            "--confidence-threshold and --schedule exclude each other", "Give one of them."
        )
    if threshold is not None:
        return EngineConfig(schedule=ScheduleConfig(mode="threshold", threshold=threshold))
    if schedule is not None:
        return EngineConfig(schedule=ScheduleConfig(mode=schedule))
    return EngineConfig()
