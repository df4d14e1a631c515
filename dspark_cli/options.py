"""Option definitions that several commands share, and their conversion to the frozen settings.

Defaults come from the settings themselves: `temperature: Temperature = SAMPLING.temperature`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from dspark.config import (
    DEFAULT_PAIR,
    HEADLESS,
    DraftWeights,
    Dtype,
    Effort,
    EngineConfig,
    KVFormat,
    RuntimeConfig,
    SamplingChoice,
    SamplingConfig,
    ScheduleConfig,
    StopConfig,
)
from dspark.errors import DSparkError, InputError

RUNTIME = RuntimeConfig()
SAMPLING = SamplingConfig()

MODEL = "Model"
SAMPLING_PANEL = "Sampling"
SPECULATION = "Speculative decoding"
DEVICE = "Device"


def complete_pair(incomplete: str) -> list[str]:
    """For the shell: names of pairs and families; if none match, it completes folders itself."""
    from dspark.hub import known_pairs
    from dspark.hub.catalog.find import FAMILIES, PAIRS

    try:
        names = [*known_pairs(), *FAMILIES]
    except DSparkError:  # the list of the user's pairs is broken: not reported during completion
        names = [*PAIRS, *FAMILIES]
    return [name for name in names if name.startswith(incomplete)]


def _complete_draft(incomplete: str) -> list[str]:
    words = [word for word in (*HEADLESS, "none") if word.startswith(incomplete)]
    return [*words, *complete_pair(incomplete)]


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def _of_64_bits(value: int | None) -> int | None:
    if value is not None and value >= 2**64:
        raise typer.BadParameter(f"{value} does not fit into 64 bits")
    return value


PairArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="PAIR",
        help="A pair (see dspark list), a folder, a GGUF file or a Hugging Face id.",
        show_default=DEFAULT_PAIR,
        autocompletion=complete_pair,
    ),
]
RequiredPair = Annotated[
    str | None,
    typer.Argument(
        metavar="PAIR", help="Name of a pair; see dspark list.", autocompletion=complete_pair
    ),
]
PairOption = Annotated[
    str | None,
    typer.Option(
        "--pair",
        "-p",
        metavar="PAIR",
        help="Same as the argument PAIR.",
        rich_help_panel=MODEL,
        autocompletion=complete_pair,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|ID",
        help="A model of your own instead of a pair: a folder, a GGUF file or a Hugging Face id.",
        rich_help_panel=MODEL,
        autocompletion=complete_pair,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|ID",
        help="Head to draft with: a folder or a Hugging Face id. lookup drafts by n-gram match "
        "in the text so far, none decodes without drafts.",
        rich_help_panel=MODEL,
        autocompletion=_complete_draft,
    ),
]
Device = Annotated[
    str,
    typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.", rich_help_panel=DEVICE),
]
DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", help="Number format of the weights.", rich_help_panel=DEVICE)
]
DraftWeightsOption = Annotated[
    DraftWeights,
    typer.Option(
        "--draft-weights",
        help="Number format of the head's weights: int8 or fp8 on a GPU; beside a GGUF on a CPU "
        "int8, which is its default, or bf16. A smaller one lowers acceptance, never changes a "
        "token.",
        rich_help_panel=DEVICE,
    ),
]
KVOption = Annotated[
    KVFormat,
    typer.Option(
        "--kv",
        help="Number format of keys and values on a GPU. int8 and fp8 take half the memory and "
        "change the output a little.",
        rich_help_panel=DEVICE,
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        min=0.0,
        callback=_finite,
        help="0 always takes the most likely token.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
TopK = Annotated[
    int,
    typer.Option(
        min=0,
        help="Sample among the K most likely tokens; 0 means all.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=1.0,
        callback=_finite,
        help="Sample among the most likely tokens that add up to this probability.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0,
        callback=_of_64_bits,
        help="The same seed gives the same answer, with any head and schedule; without one, "
        "sampled answers differ.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
MaxTokens = Annotated[
    int,
    typer.Option(
        min=1, help="Maximum number of new tokens per answer.", rich_help_panel=SAMPLING_PANEL
    ),
]
# The same options, with the model's own files as the default.
OwnTemperature = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        callback=_finite,
        help="0 always takes the most likely token; default: the model's own.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
OwnTopK = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Sample among the K most likely tokens, 0 means all; default: the model's own.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
OwnTopP = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        callback=_finite,
        help="Sample among the most likely tokens that add up to this probability; default: the "
        "model's own.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
OwnMaxTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Maximum number of new tokens per answer; default: up to the end of the context.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace", metavar="FILE", help="Append each round to FILE, which dspark replay plays."
    ),
]
StopStrings = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        help="End the answer before this text, which may be a special token; repeatable.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--confidence-threshold",
        min=0.0,
        max=1.0,
        callback=_finite,
        help="Verify a block up to the first draft below this confidence; excludes --schedule.",
        rich_help_panel=SPECULATION,
    ),
]
ScheduleOption = Annotated[
    Literal["auto", "async", "full"] | None,
    typer.Option(
        "--schedule",
        help="How much of a block to verify: auto weighs gain against cost and stops drafting "
        "where it loses, async does so with a budget from two rounds ago, full verifies all.",
        rich_help_panel=SPECULATION,
    ),
]
EffortOption = Annotated[
    Effort | None,
    typer.Option(
        "--effort",
        help="How much the model thinks, one of its levels: gpt-oss has low, medium and high, "
        "DeepSeek-V4 high and max.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
WhatIf = Annotated[
    str | None,
    typer.Option(
        "--what-if",
        metavar="gpu=24,ram=256",
        help="Tell where the weights would be on such a machine, with an estimate of the speed, "
        "and stop. Sizes in GB; gpu= may be a card (4090), @ adds GB/s (ram=256@110), ssd= and "
        "pcie= are GB/s.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout instead of text.")
]


def one_pair(argument: str | None, option: str | None, target: str | None = None) -> str:
    """The pair given as argument or as --pair; DEFAULT_PAIR if neither is."""
    if argument is not None and option is not None:
        raise InputError(
            f"two pairs are named, {argument} and {option}", "Leave out --pair or the argument."
        )
    named = argument if argument is not None else option
    if named is not None and target is not None:
        raise InputError(
            f"--target replaces a pair, and {named} is one",
            "Give one of the two; --draft chooses another head for a pair.",
        )
    return DEFAULT_PAIR if named is None else named


def given(context: typer.Context, names: Sequence[str]) -> list[str]:
    """Those of the parameters that are on the command line, as a user writes them."""
    params = {each.name: each for each in context.command.get_params(context)}
    return [
        params[name].opts[0] if params[name].param_type_name == "option" else "PAIR"
        for name in names
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    ]


def needed_pair(argument: str | None, option: str | None, command: str) -> str:
    """As one_pair, without a default."""
    if argument is None and option is None:
        raise InputError(f"dspark {command} needs a pair", "See dspark list for the names.")
    return one_pair(argument, option)


def sampling_config(
    temperature: float, top_k: int, top_p: float, seed: int | None
) -> SamplingConfig:
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
        raise InputError("--stop needs a text", "Leave out --stop for the model's own stop tokens.")
    return StopConfig(max_tokens=max_tokens, strings=tuple(strings or ()))


def engine_config(
    threshold: float | None,
    schedule: Literal["auto", "async", "full"] | None,
    *,
    max_requests: int = EngineConfig().max_requests,
) -> EngineConfig:
    """Without either option, the default schedule."""
    if threshold is not None and schedule is not None:
        raise InputError(
            "--confidence-threshold and --schedule exclude each other", "Give one of them."
        )
    chosen = ScheduleConfig()
    if threshold is not None:
        chosen = ScheduleConfig(mode="threshold", threshold=threshold)
    elif schedule is not None:
        chosen = ScheduleConfig(mode=schedule)
    return EngineConfig(schedule=chosen, max_requests=max_requests)
