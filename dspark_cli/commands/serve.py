"""`dspark serve`: a pair at an address of this machine, or handed over to another engine."""

import os
import shlex
import sys
from dataclasses import replace
from typing import Annotated, Literal

import typer

from dspark.config import PairChoice, RuntimeConfig, ServeConfig
from dspark.errors import InputError
from dspark_cli import options
from dspark_cli.naming import chosen_name
from dspark_cli.output.facts import print_json
from dspark_cli.output.tables import say

EXAMPLES = (
    "dspark serve",
    "dspark serve qwen3-8b --port 8080 --api-key secret",
    "dspark serve ./my-model --draft lookup",
    "dspark serve deepseek-v4-flash --engine vllm --gpus 4 --print",
)
SERVER, OTHER = "Server", "Other engines"
SERVE = ServeConfig()
# options of our own engine, and of the others
OWN_OPTIONS = (
    *(
        "target",
        "draft",
        "device",
        "dtype",
        "draft_weights",
        "kv",
        "confidence_threshold",
        "schedule",
    ),
    *("host", "port", "api_key", "max_queue", "max_seconds", "prefix_memory", "kv_memory"),
)
OTHER_OPTIONS = ("gpus", "only_print", "trust_remote_code", "as_json")

EngineOption = Annotated[
    Literal["dspark", "vllm", "sglang"],
    typer.Option(
        "--engine", help="dspark's own engine, or one for many GPUs.", rich_help_panel=OTHER
    ),
]
Gpus = Annotated[
    int,
    typer.Option(
        "--gpus", min=1, help="Number of GPUs to spread the pair over.", rich_help_panel=OTHER
    ),
]
Print = Annotated[
    bool,
    typer.Option("--print", help="Print the command instead of running it.", rich_help_panel=OTHER),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let the engine run code from the repository.",
        rich_help_panel=OTHER,
    ),
]
Host = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Address to listen at; 0.0.0.0 lets other machines in.",
        rich_help_panel=SERVER,
    ),
]
Port = Annotated[
    int,
    typer.Option(min=0, max=65535, help="Port; 0 takes a free one.", rich_help_panel=SERVER),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        envvar="DSPARK_API_KEY",
        help="Key that clients must send; default: none.",
        rich_help_panel=SERVER,
    ),
]
MaxQueue = Annotated[
    int,
    typer.Option(
        min=1,
        help="Requests running and waiting before others are refused.",
        rich_help_panel=SERVER,
    ),
]
MaxSeconds = Annotated[
    float,
    typer.Option(min=0.001, help="Longest time for one answer.", rich_help_panel=SERVER),
]
PrefixMemory = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="GIB",
        help="Memory for finished texts, which later prompts may begin with. Default: 1; on a GPU "
        "what running requests do not need.",
        rich_help_panel=SERVER,
    ),
]
KVMemory = Annotated[
    float | None,
    typer.Option(
        "--kv-memory",
        min=0.0,
        metavar="GIB",
        help="Memory for keys and values of all requests. Default: what the weights leave.",
        rich_help_panel=SERVER,
    ),
]


def serve(
    context: typer.Context,
    pair: options.PairArgument = None,
    pair_option: options.PairOption = None,
    target: options.Target = None,
    draft: options.Draft = None,
    device: options.Device = options.RUNTIME.device,
    dtype: options.DtypeOption = options.RUNTIME.dtype,
    draft_weights: options.DraftWeightsOption = options.RUNTIME.draft_weights,
    kv: options.KVOption = options.RUNTIME.kv,
    confidence_threshold: options.Threshold = None,
    schedule: options.ScheduleOption = None,
    host: Host = SERVE.host,
    port: Port = SERVE.port,
    api_key: ApiKey = SERVE.api_key,
    max_queue: MaxQueue = SERVE.max_queue,
    max_seconds: MaxSeconds = SERVE.max_seconds,
    prefix_memory: PrefixMemory = None,
    kv_memory: KVMemory = None,
    engine: EngineOption = "dspark",
    gpus: Gpus = 1,
    only_print: Print = False,
    trust_remote_code: Trust = False,
    as_json: options.Json = False,
) -> None:
    """Serve a pair under OpenAI's protocol, here or with vLLM or SGLang."""
    if engine != "dspark":
        _check_options(context, OWN_OPTIONS, f"--engine {engine} has no")
        name = options.needed_pair(pair, pair_option, "serve")
        _hand_over(name, engine, gpus, only_print, trust_remote_code, as_json)
        return
    _check_options(context, OTHER_OPTIONS, "only --engine vllm and sglang have")
    from dspark_cli.serving import serve_here

    serve_here(
        PairChoice(options.one_pair(pair, pair_option, target), target, draft),
        RuntimeConfig(device, dtype, draft_weights, kv),
        replace(
            options.engine_config(confidence_threshold, schedule),
            prefix_cache_bytes=_bytes(prefix_memory),
            cache_bytes=_bytes(kv_memory),
        ),
        ServeConfig(host, port, api_key, max_queue=max_queue, max_seconds=max_seconds),
    )


def _bytes(gibibytes: float | None) -> int | None:
    return None if gibibytes is None else int(gibibytes * 2**30)


def _check_options(context: typer.Context, names: tuple[str, ...], what: str) -> None:
    if given := options.given(context, names):
        raise InputError(f"{what} {', '.join(given)}", "Leave it out, or change --engine.")


def _hand_over(
    name: str,
    engine: Literal["vllm", "sglang"],
    gpus: int,
    only_print: bool,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    if as_json and not only_print:
        raise InputError("--json needs --print", "Add --print, or leave --json out.")
    from dspark import hub
    from dspark.serve.handover import ENGINES, check_installed, serve_command

    if hub.is_repo_id(name) and hub.pair_of_target(name) is None:
        raise InputError(
            f"no head that {engine} runs is known for {name}", "See dspark list for known pairs."
        )
    known = hub.pair_of_target(name) or hub.find_pair(chosen_name(name))
    command = serve_command(known, engine, num_gpus=gpus, trusts_remote_code=trust_remote_code)
    url = f"http://localhost:{ENGINES[engine].port}"
    if as_json:
        print_json({"name": known.name, "engine": engine, "command": list(command), "url": url})
        return
    if only_print:
        print(shlex.join(command))
        return
    check_installed(known, engine)
    say(shlex.join(command))
    say(f"Once it is ready: dspark chat --server {url}")
    _become(command)


def _become(command: tuple[str, ...]) -> None:
    """Replaces this process by the engine, which then receives every signal itself."""
    program, *arguments = command
    beside = os.path.join(os.path.dirname(sys.executable), program)
    program = sys.executable if program == "python" else beside
    os.execv(program, [program, *arguments])
