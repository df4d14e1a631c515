"""`dspark serve`: hands a pair over to an engine built for many GPUs."""

import os
import shlex
import sys
from typing import Annotated, Literal

import typer

from dspark.errors import InputError
from dspark_cli import options
from dspark_cli.naming import chosen_name
from dspark_cli.output.answer import say
from dspark_cli.output.facts import print_json

EXAMPLES = (
    "dspark serve deepseek-v4-flash --engine vllm --gpus 4 --print",
    "dspark serve qwen3-8b --engine sglang",
)

EngineOption = Annotated[
    Literal["vllm", "sglang"], typer.Option("--engine", help="The engine that serves the pair.")
]
Gpus = Annotated[int, typer.Option("--gpus", min=1, help="Number of GPUs to spread the pair over.")]
Print = Annotated[bool, typer.Option("--print", help="Print the command instead of running it.")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the engine run code from the repository.")
]


def serve(
    engine: EngineOption,
    pair: options.RequiredPair = None,
    pair_option: options.PairOption = None,
    gpus: Gpus = 1,
    only_print: Print = False,
    trust_remote_code: Trust = False,
    as_json: options.Json = False,
) -> None:
    """Serve a pair with vLLM or SGLang, using the exact command for that pair."""
    if as_json and not only_print:
        raise InputError("--json needs --print", "Add --print, or leave --json out.")
    from dspark import hub
    from dspark.serve.handover import ENGINES, check_installed, serve_command

    name = options.needed_pair(pair, pair_option, "serve")
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
