"""`dspark chat`: the Textual chat, or a plain loop if stdin or stdout is not a terminal."""

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from dspark.config import (
    PairChoice,
    RuntimeConfig,
    ServerConfig,
    StopConfig,
    WebConfig,
)
from dspark.errors import InputError, MemoryFullError
from dspark_cli import options
from dspark_cli.naming import settled
from dspark_cli.shown_drafts import showing_drafts
from dspark_cli.stored_chats import (
    chosen_chat,
    engine_backend,
    open_store,
    other_models,
)
from dspark_cli.typed_ahead import keeping_enter
from dspark_cli.web_chat import is_in_a_tab, serve_chat, words_given

if TYPE_CHECKING:
    from dspark.chat.backend import ChatBackend

EXAMPLES = (
    "dspark chat",
    'dspark chat qwen3-4b "Explain speculative decoding."',
    'dspark chat demo --system "Answer in one sentence." --temperature 0.7',
    "dspark chat --continue",
    "dspark chat --web",
    "dspark chat deepseek-v4-flash --what-if gpu=24,ram=256",
    "dspark chat ./my-model --draft lookup",
    "dspark chat --server http://localhost:8000",
)
SERVER, STORED = "Server", "Stored chats"
WEB = WebConfig()
# options of a model that runs here; a server would ignore them
LOCAL_OPTIONS = (
    *("pair", "pair_option", "target", "draft", "device", "dtype", "draft_weights", "kv"),
    *("confidence_threshold", "schedule"),
)

Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="First prompt, sent once the model is loaded."),
]
Plain = Annotated[
    bool, typer.Option("--plain", help="A plain loop: prompts on stdin, answers on stdout.")
]
Web = Annotated[bool, typer.Option("--web", help="Serve the screen to a browser on this machine.")]
Port = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="Port of --web.", show_default=str(WEB.port)),
]
System = Annotated[str, typer.Option("--system", metavar="TEXT", help="System prompt.")]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Chat with an OpenAI-compatible server; OPENAI_API_KEY is sent to it.",
        rich_help_panel=SERVER,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Model to use, if the server has several.",
        rich_help_panel=SERVER,
    ),
]

Continue = Annotated[
    bool,
    typer.Option(
        "--continue",
        "-c",
        help="Go on with the last chat, and with its model if none is named.",
        rich_help_panel=STORED,
    ),
]
StoredSession = Annotated[
    str | None,
    typer.Option(
        "--session",
        metavar="TITLE",
        help="Go on with the chat whose title begins like this, or which has this number.",
        rich_help_panel=STORED,
    ),
]
Private = Annotated[
    bool,
    typer.Option(
        "--private", help="Store nothing; chats end with the program.", rich_help_panel=STORED
    ),
]


def chat(
    context: typer.Context,
    pair: options.PairArgument = None,
    prompt: Prompt = None,
    pair_option: options.PairOption = None,
    target: options.Target = None,
    draft: options.Draft = None,
    plain: Plain = False,
    web: Web = False,
    port: Port = None,
    system: System = "",
    device: options.Device = options.RUNTIME.device,
    dtype: options.DtypeOption = options.RUNTIME.dtype,
    draft_weights: options.DraftWeightsOption = options.RUNTIME.draft_weights,
    kv: options.KVOption = options.RUNTIME.kv,
    temperature: options.OwnTemperature = None,
    top_k: options.OwnTopK = None,
    top_p: options.OwnTopP = None,
    seed: options.Seed = None,
    max_tokens: options.OwnMaxTokens = None,
    confidence_threshold: options.Threshold = None,
    schedule: options.ScheduleOption = None,
    server: Server = None,
    model: Model = None,
    trace: options.Trace = None,
    continues: Continue = False,
    session: StoredSession = None,
    private: Private = False,
    what_if: options.WhatIf = None,
) -> None:
    """Chat with a model and see which tokens were drafted."""
    from dspark.chat.backend import ChatSettings

    if web or port is not None:
        _serve(context, web=web, plain=plain, port=port)
        return
    engine = options.engine_config(confidence_threshold, schedule, max_requests=1)
    if prompt is None and (pair_option or target) and not _is_pair(pair):
        pair, prompt = None, pair  # the model is named already, so the word is a prompt
    if what_if is not None:
        from dspark_cli.views.machine_plan import tell_what_if

        tell_what_if(options.one_pair(pair, pair_option, target), what_if)
        return
    if model is not None and server is None:
        raise InputError("--model names a model of a server", "Give --server as well.")
    is_plain = plain or not has_screen()
    if is_plain and (continues or session is not None):
        raise InputError(
            "--continue and --session need the screen of a terminal", "Leave them and --plain out."
        )
    store = open_store(is_private=private or is_plain)
    stored = chosen_chat(store, continues=continues, session=session)
    if stored is not None and server is None and pair is None and not (pair_option or target):
        pair = stored.model if _is_pair(stored.model) else None
    backend: ChatBackend
    models = None
    if server is not None:
        prompt = _check_server_options(context, pair, prompt)
        backend = _server_backend(server, model)
    else:
        name = options.one_pair(pair, pair_option, target)
        # reported now, before the screen is taken
        runtime = RuntimeConfig(device, dtype, draft_weights, kv)
        choice = _settled_or_plan(PairChoice(name, target, draft), runtime)
        has_schedule = schedule is not None or confidence_threshold is not None
        shows_drafts = not (has_schedule or is_plain)
        own = showing_drafts(name, engine) if shows_drafts and target is None else engine
        backend = engine_backend(choice, runtime, own)
        models = other_models(runtime, engine, shows_drafts=shows_drafts)
    if trace is not None:
        from dspark.chat.trace import TraceFile, TracingBackend

        backend = TracingBackend(backend, TraceFile(trace))
    settings = ChatSettings(
        sampling=options.sampling_choice(temperature, top_k, top_p, seed),
        stop=StopConfig(max_tokens=max_tokens),
        system=system,
        prompts=(prompt,) if prompt else (),
    )
    if is_plain:
        from dspark_cli.plain_chat import run_plain_chat

        run_plain_chat(backend, settings, sys.stdin.buffer)
        return
    with keeping_enter():
        from dspark.chat.attachments import attach
        from dspark_tui.app import run_chat

        settings = replace(settings, prompts=tuple(map(attach, settings.prompts)))
        first_chat = None if stored is None else stored.id
        raise typer.Exit(run_chat(backend, settings, store, first_chat, models))


def _serve(context: typer.Context, *, web: bool, plain: bool, port: int | None) -> None:
    """What else was given, each tab's chat gets."""
    if not web:
        raise InputError("--port is the port of --web", "Give --web as well.")
    if plain:
        raise InputError("--web shows the screen, which --plain leaves out", "Give one of them.")
    serve_chat(words_given(context, without=("web", "port")), WebConfig(port=port or WEB.port))


def _settled_or_plan(choice: PairChoice, runtime: RuntimeConfig) -> PairChoice:
    """Where memory is too small for a model with routed experts, what would be where is told."""
    try:
        return settled(choice, runtime)
    except MemoryFullError as error:
        from dspark_cli.views.machine_plan import with_plan

        raise with_plan(choice.pair, error) from None


def _is_pair(word: str | None) -> bool:
    from dspark import hub
    from dspark.hub.catalog.find import FAMILIES

    return word is not None and (word in FAMILIES or hub.known_pair(word) is not None)


def _check_server_options(
    context: typer.Context, word: str | None, prompt: str | None
) -> str | None:
    """The first prompt; raises InputError for options that a server would ignore.

    A single argument is a prompt if it cannot be a pair.
    """
    given = options.given(context, LOCAL_OPTIONS)
    if word is not None and prompt is None and " " in word.strip():
        prompt = word
        given.remove("PAIR")
    if given:
        raise InputError(
            f"--server brings its own model, so {', '.join(given)} would have no effect",
            "Leave it out; --model chooses among the server's models.",
        )
    return prompt


def _server_backend(url: str, model: str | None) -> "ChatBackend":
    from dspark.chat.openai.client import ServerBackend

    return ServerBackend(ServerConfig(url, model))


def has_screen() -> bool:
    """Whether the terminal can show the Textual chat."""
    return is_in_a_tab() or (
        sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    )
