"""`dspark profile`: what passes cost on this machine, and what drafting should gain."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from dspark.config import EngineConfig, PairChoice, RuntimeConfig
from dspark.progress import follow
from dspark_cli import options
from dspark_cli.bench_run import encode_all, parse_counts
from dspark_cli.loading import find_files, open_files, progress_bars
from dspark_cli.output.facts import print_json

EXAMPLES = ("dspark profile demo", "dspark profile demo --requests 1,4,16 --json")


def profile(
    pair: options.PairArgument = None,
    pair_option: options.PairOption = None,
    target: options.Target = None,
    draft: options.Draft = None,
    requests: Annotated[
        str, typer.Option(metavar="N,...", help="Numbers of requests at a time.")
    ] = "1,2,4,8,16",
    device: options.Device = options.RUNTIME.device,
    dtype: options.DtypeOption = options.RUNTIME.dtype,
    as_json: options.Json = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the same JSON object to a file.")
    ] = None,
) -> None:
    """Measure what passes cost on this machine and what drafting should gain.

    The figures are stored, and the scheduler decides by them.
    """
    counts = parse_counts(requests, is_alone=True, option="--requests")
    choice = PairChoice(options.one_pair(pair, pair_option, target), target, draft)
    runtime = RuntimeConfig(device=device, dtype=dtype)
    with open_files(find_files(choice, runtime), runtime, EngineConfig()) as session:
        from dspark.bench.document import provenance, write_document
        from dspark.bench.profile import run_profile
        from dspark.bench.prompts import own_prompts
        from dspark_cli.views.profile import print_profile

        prompts = encode_all(session, own_prompts())
        with progress_bars() as bars:
            measured = follow(run_profile(session, prompts, counts), bars.show)
        command = shlex.join(["dspark", *sys.argv[1:]])
        document = {"pair": session.name, **measured.figures(), **provenance(command)}
    if output:
        write_document(output, document)
    if as_json:
        print_json(document)
    else:
        print_profile(measured)
