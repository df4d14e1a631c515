"""`dspark chat`: the Textual chat, or a plain loop where stdin or stdout is no terminal."""

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from dspark.config import EngineConfig, RuntimeConfig, ServerConfig, StopConfig
from dspark.errors import InputError
from dspark.events import FetchProgress
from dspark_cli import options
from dspark_cli.loading import PairChoice, find_files, usable_name

if TYPE_CHECKING:
    from dspark.hub.pairs import PairFiles
    from dspark_tui.backend import ChatBackend

Plain = Annotated[
    bool, typer.Option("--plain", help="A plain loop: prompts on stdin, answers on stdout.")
]
System = Annotated[
    str, typer.Option("--system", metavar="TEXT", help="What the model is told first.")
]

Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Talk to a server that speaks OpenAI's protocol (OPENAI_API_KEY)."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Which of the server's models; without it, its only one."),
]


def chat(
    pair: options.PairArgument = options.DEFAULT_PAIR,
    target: options.Target = None,
    draft: options.Draft = None,
    plain: Plain = False,
    system: System = "",
    device: options.Device = options.RUNTIME.device,
    dtype: options.DtypeOption = options.RUNTIME.dtype,
    draft_weights: options.DraftWeightsOption = options.RUNTIME.draft_weights,
    temperature: options.OwnTemperature = None,
    top_k: options.OwnTopK = None,
    top_p: options.OwnTopP = None,
    seed: options.OwnSeed = None,
    max_tokens: options.OwnMaxTokens = None,
    confidence_threshold: options.Threshold = None,
    schedule: options.ScheduleOption = None,
    server: Server = None,
    model: Model = None,
) -> None:
    """Chat with a model and see which tokens were drafted."""
    from dspark_tui.backend import ChatSettings

    engine = options.engine_config(confidence_threshold, schedule)
    backend: ChatBackend
    if server is not None:
        if (target, draft, engine) != (None, None, EngineConfig()):
            raise InputError(
                "--server has its own model", "Leave out what chooses or tunes a pair."
            )
        backend = _server_backend(server, model)
    elif model is not None:
        raise InputError("--model names a model of a server", "Give --server as well.")
    else:
        # said now, before the screen is taken
        pair = pair if target is not None else usable_name(pair)
        choice = PairChoice(pair, target, draft)
        backend = _engine_backend(choice, RuntimeConfig(device, dtype, draft_weights), engine)
    settings = ChatSettings(
        sampling=options.sampling_choice(temperature, top_k, top_p, seed),
        stop=StopConfig(max_tokens=max_tokens),
        system=system,
    )
    if plain or not _has_screen():
        from dspark_cli.plain_chat import run_plain_chat

        run_plain_chat(backend, settings, sys.stdin.buffer)
    else:
        from dspark_tui.app import run_chat

        raise typer.Exit(run_chat(backend, settings))


def _server_backend(url: str, model: str | None) -> "ChatBackend":
    from dspark_tui.server_backend import ServerBackend

    return ServerBackend(ServerConfig(url, model))


def _engine_backend(
    choice: PairChoice, runtime: RuntimeConfig, engine: EngineConfig
) -> "ChatBackend":
    from dspark_tui.backend import EngineBackend

    return EngineBackend(
        name=choice.target or choice.pair,
        find_files=lambda: _find_files(choice),
        runtime=runtime,
        engine=engine,
    )


def _has_screen() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _find_files(choice: PairChoice) -> "Iterator[FetchProgress | PairFiles]":
    """What is missing is fetched here, where the chat sees how far it is."""
    from dspark import hub

    if choice.target is None and hub.locate(choice.pair) is None:
        yield from hub.fetch(choice.pair)
    yield from hub.fetch_missing(choice.target or "")
    yield from hub.fetch_missing(choice.draft or "", is_head=True)
    yield find_files(choice)
