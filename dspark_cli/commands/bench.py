"""`dspark bench`: plain decoding and drafts on the same prompts, in turns, and a report of it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dspark.bench.config import BenchConfig
from dspark.config import PairChoice, RuntimeConfig
from dspark.errors import InputError
from dspark.plural import counted
from dspark_cli import options
from dspark_cli.bench_report import (
    Conditions,
    Peers,
    Work,
    command_line,
    engines_of,
    measure_heads,
    measure_pair,
)
from dspark_cli.bench_run import (
    chosen_prompts,
    encode_all,
    follow_bench,
    parse_counts,
    temperatures_of,
    whole_numbers,
)
from dspark_cli.drafters import check_drafters, parse_drafters
from dspark_cli.errors import ExitCode
from dspark_cli.loading import find_files, open_files
from dspark_cli.output.facts import print_json
from dspark_cli.output.tables import wrapped
from dspark_cli.report_files import Outputs, read_report

if TYPE_CHECKING:
    from dspark.bench.report_document import Measured
    from dspark.engine.session import Session

EXAMPLES = (
    "dspark bench demo",
    "dspark bench qwen3-4b --full --output figures.json --html figures.html",
    "dspark bench demo --suite gsm8k --limit 20",
    "dspark bench demo --against transformers",
    "dspark bench demo --compare figures.json",
    "dspark bench demo --concurrency 1,2,4,8",
    "dspark bench demo --drafters mine=./my-head,lookup=lookup --tau-only",
)
DEFAULTS = BenchConfig()
WORK = "Prompts and trials"
CONDITIONS = "Conditions"
COMPARISONS = "Comparisons"
OUTPUT = "Output"


def bench(
    pair: options.PairArgument = None,
    pair_option: options.PairOption = None,
    target: options.Target = None,
    draft: options.Draft = None,
    drafters: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=HEAD,...",
            help="Compare several heads, each a folder or a Hugging Face id, on one model; "
            "repeatable.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Runs over all prompts.", rich_help_panel=WORK)
    ] = DEFAULTS.trials,
    max_tokens: options.MaxTokens = DEFAULTS.max_tokens,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="File of prompts: JSON lines with prompt and category; repeatable.",
            rich_help_panel=WORK,
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Published prompts, fetched at a pinned revision: gsm8k, humaneval, mt-bench or "
            "spec-bench.",
            rich_help_panel=WORK,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Only N prompts of a file or suite, of every kind in turn.",
            rich_help_panel=WORK,
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Every condition that the model knows: T = 0 and 1, contexts of 0, 512 and 2,048 "
            "tokens, thinking on and off; n-gram lookup beside the head.",
            rich_help_panel=CONDITIONS,
        ),
    ] = False,
    temperatures: Annotated[
        str | None,
        typer.Option(
            metavar="T,...",
            help="Measure at each of these temperatures.",
            rich_help_panel=CONDITIONS,
        ),
    ] = None,
    depths: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Measure behind that many tokens of other text.",
            rich_help_panel=CONDITIONS,
        ),
    ] = None,
    thinking: Annotated[
        Literal["on", "off", "both"] | None,
        typer.Option(
            help="Turn on or off the thinking of models whose chat template has a switch.",
            rich_help_panel=CONDITIONS,
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="That many requests at a time: plain, every fixed length, a threshold, both "
            "schedulers.",
            rich_help_panel=WORK,
        ),
    ] = None,
    tau_only: Annotated[
        bool,
        typer.Option(
            "--tau-only",
            help="With --drafters: accepted lengths only, batched, with whole blocks verified.",
            rich_help_panel=WORK,
        ),
    ] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="transformers|llama.cpp",
            help="Run another engine on the same weights, in turns with ours, in a process of its "
            "own; repeatable.",
            rich_help_panel=COMPARISONS,
        ),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --against llama.cpp: the GGUF from which the model was made.",
            rich_help_panel=COMPARISONS,
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD.json",
            help="Compare with an older report; exit code 3 if a figure is worse by more than "
            "noise.",
            rich_help_panel=COMPARISONS,
        ),
    ] = None,
    stored: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Read a report instead of measuring, for --compare, --html and --markdown.",
            rich_help_panel=COMPARISONS,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one JSON object on stdout instead of tables.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the same JSON object to a file, and the raw rounds to one beside it.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the report as one page with plots, which needs no network.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the report as Markdown.", rich_help_panel=OUTPUT),
    ] = None,
    device: options.Device = options.RUNTIME.device,
    dtype: options.DtypeOption = options.RUNTIME.dtype,
    draft_weights: options.DraftWeightsOption = options.RUNTIME.draft_weights,
    kv: options.KVOption = options.RUNTIME.kv,
    temperature: options.Temperature = DEFAULTS.sampling.temperature,
    top_k: options.TopK = DEFAULTS.sampling.top_k,
    top_p: options.TopP = DEFAULTS.sampling.top_p,
    seed: options.Seed = DEFAULTS.sampling.seed,
    confidence_threshold: options.Threshold = None,
    schedule: options.ScheduleOption = None,
) -> None:
    """Time plain decoding against drafts, check that their output is identical, and report it.

    Ctrl+C stops early and prints the figures measured so far.
    """
    from dspark.bench.document import write_document

    outputs = Outputs(output, html, markdown, as_json)
    outputs.check()
    old = None if compare is None else read_report(compare, "--compare")
    if stored is not None:
        document = read_report(stored, "--from")
        if old is None and not as_json:
            from dspark_cli.views.report_terminal import print_stored

            print_stored(document)
        _finish(document, outputs, old)
        return
    heads = parse_drafters(drafters or [])
    has_schedule = schedule is not None or confidence_threshold is not None
    check_drafters(heads, draft, is_tau_only=tau_only, has_schedule=has_schedule)
    counts = parse_counts(concurrency, is_alone=not heads and not has_schedule)
    wanted = Conditions(
        temperatures_of(temperatures), whole_numbers(depths, "--depths"), thinking, full
    )
    peers = Peers(engines_of(against or ()), gguf)
    _check_combinations(wanted, peers, outputs, old, has_heads=bool(heads), is_load=bool(counts))
    work = Work(
        prompts=chosen_prompts(prompts or [], suite, limit),
        config=BenchConfig(
            trials=1 if tau_only else trials,
            max_tokens=max_tokens,
            sampling=options.sampling_config(temperature, top_k, top_p, seed),
        ),
        runtime=RuntimeConfig(device, dtype, draft_weights, kv),
        engine=options.engine_config(confidence_threshold, "full" if tau_only else schedule),
    )
    choice = PairChoice(options.one_pair(pair, pair_option, target), target, draft)
    if counts:
        document = _bench_load(choice, work, counts, as_json)
        if output:
            write_document(output, document)
        if as_json:
            print_json(document)
    else:
        if heads:
            found = measure_heads(choice, heads, work, wanted, is_tau_only=tau_only)
        else:
            found = measure_pair(choice, work, wanted, peers)
        document = _report(*found, work, outputs)
        _finish(document, outputs, old)
    if document["partial"]:
        raise typer.Exit(ExitCode.INTERRUPTED)


def _report(measured: "Measured", conditions: int, work: Work, outputs: Outputs) -> dict[str, Any]:
    """Prints the tables and writes the raw rounds."""
    from dspark.bench.raw_rounds import rounds_path, write_rounds
    from dspark.bench.report_document import whole_document

    rounds = None if outputs.json_file is None else rounds_path(outputs.json_file)
    document = whole_document(
        measured, work.config, work.engine, conditions, command_line(), rounds
    )
    if not outputs.as_json:
        from dspark_cli.views.report_terminal import print_report

        print_report(measured, document, work.config)
    if rounds is not None:
        write_rounds(rounds, measured.sections)
    return document


def _finish(document: dict[str, Any], outputs: Outputs, old: dict[str, Any] | None) -> None:
    """Writes and prints; exits with REGRESSED if a figure is worse than in the old report."""
    found = []
    if old is not None:
        from dspark.bench.regressions import changes, regressed

        compared = changes(old, document)
        found = regressed(compared)
        document = {**document, "compared": [asdict(each) for each in compared]}
    outputs.write(document)
    if outputs.as_json:
        print_json(document)
    elif old is not None:
        from dspark_cli.views.report_terminal import print_changes

        print_changes(compared, old)
    if found:
        raise typer.Exit(ExitCode.REGRESSED)


def _check_combinations(
    wanted: Conditions,
    peers: Peers,
    outputs: Outputs,
    old: dict[str, Any] | None,
    *,
    has_heads: bool,
    is_load: bool,
) -> None:
    """Refuses options that do not go together."""
    if is_load and (wanted != Conditions() or peers.engines or old or outputs.has_pages):
        raise InputError(
            "--concurrency has tables and JSON of its own",
            "Leave out conditions, --against, --compare, --html and --markdown.",
        )
    if peers.engines and has_heads:
        raise InputError("--against measures one pair", "Leave --drafters out.")
    if ("llama.cpp" in peers.engines) != (peers.gguf is not None):
        raise InputError(
            "--against llama.cpp and --gguf go together",
            "Give the GGUF from which the model was made.",
        )
    if "llama.cpp" in peers.engines:
        from dspark.bench.peers.llama_server import find_binary

        find_binary()
    if peers.gguf is not None and not peers.gguf.is_file():
        raise InputError(f"there is no file {peers.gguf}", "Check the path given to --gguf.")


def _bench_load(
    choice: PairChoice, work: Work, counts: Sequence[int], as_json: bool
) -> dict[str, Any]:
    from dspark.bench.document import load_document

    with open_files(find_files(choice, work.runtime), work.runtime, work.engine) as session:
        from dspark.bench.concurrency import run_load

        prompts = encode_all(session, work.prompts.texts)
        report = follow_bench(run_load(session, prompts, counts, work.config), is_timed=False)
    if not as_json:
        from dspark_cli.views.concurrency import print_load

        _print_title(session, work.config, f"median of {counted(report.trials, 'trial')}")
        print_load(report)
    return load_document(report, work.config, session.name, session.runtime, command_line())


def _print_title(session: "Session", config: BenchConfig, method: str) -> None:
    title = (
        f"{session.name} on {session.runtime.device} in {session.runtime.dtype}, at most "
        f"{counted(config.max_tokens, 'token')} per prompt, {method}"
    )
    print(wrapped(title) + "\n")
