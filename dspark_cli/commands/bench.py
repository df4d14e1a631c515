"""`dspark bench`: plain decoding and DSpark on the same prompts, in turns."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspark.bench.config import BenchConfig
from dspark.bench.prompts import PromptText, own_prompts, read_prompts
from dspark.config import EngineConfig, PairChoice, RuntimeConfig
from dspark.errors import InputError
from dspark.plural import counted
from dspark_cli import options
from dspark_cli.bench_run import encode_all, follow_bench, parse_counts
from dspark_cli.drafters import check_drafters, open_drafters, parse_drafters
from dspark_cli.errors import ExitCode
from dspark_cli.loading import find_files, open_files
from dspark_cli.output.facts import print_json
from dspark_cli.output.tables import wrapped
from dspark_cli.views.bench import bench_table, partial_line

if TYPE_CHECKING:
    from dspark.bench.comparison import Comparison
    from dspark.bench.report import BenchReport
    from dspark.engine.session import Session

EXAMPLES = (
    "dspark bench demo",
    "dspark bench qwen3-4b --trials 1 --output figures.json",
    "dspark bench demo --concurrency 1,2,4,8",
    "dspark bench demo --drafters mine=./my-head,lookup=lookup --tau-only",
)
DEFAULTS = BenchConfig()
WORK = "Prompts and trials"
OUTPUT = "Output"


@dataclass(frozen=True, slots=True)
class Work:
    """The prompts and settings of a measurement."""

    texts: Sequence[PromptText]
    config: BenchConfig
    runtime: RuntimeConfig
    engine: EngineConfig


def bench(
    pair: options.PairArgument = None,
    pair_option: options.PairOption = None,
    target: options.Target = None,
    draft: options.Draft = None,
    drafters: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=HEAD,...",
            help="Compare several heads, each a folder or a Hugging Face id, on one target; "
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
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Only the first N prompts of a file.", rich_help_panel=WORK
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
            metavar="FILE", help="Write the same JSON object to a file.", rich_help_panel=OUTPUT
        ),
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
    """Time plain decoding against DSpark and check that their output is identical.

    Ctrl+C stops early and prints the figures measured so far.
    """
    from dspark.bench.document import write_document

    heads = parse_drafters(drafters or [])
    has_schedule = schedule is not None or confidence_threshold is not None
    check_drafters(heads, draft, is_tau_only=tau_only, has_schedule=has_schedule)
    sets = [read_prompts(path) for path in prompts] if prompts else [own_prompts()]
    work = Work(
        texts=[text for each in sets for text in each[:limit]],
        config=BenchConfig(
            trials=1 if tau_only else trials,
            max_tokens=max_tokens,
            sampling=options.sampling_config(temperature, top_k, top_p, seed),
        ),
        runtime=RuntimeConfig(device, dtype, draft_weights, kv),
        engine=options.engine_config(confidence_threshold, "full" if tau_only else schedule),
    )
    if output and not output.absolute().parent.is_dir():
        raise InputError(f"there is no folder for {output}", "Make it first, or check --output.")
    choice = PairChoice(options.one_pair(pair, pair_option, target), target, draft)
    counts = parse_counts(concurrency, is_alone=not heads and not has_schedule)
    if counts:
        document = _bench_load(choice, work, counts, as_json)
    elif heads:
        document = _compare_heads(choice, heads, work, tau_only, as_json)
    else:
        document = _bench_pair(choice, work, as_json)
    if output:
        write_document(output, document)
    if as_json:
        print_json(document)
    if document["partial"]:
        raise typer.Exit(ExitCode.INTERRUPTED)


def _bench_pair(choice: PairChoice, work: Work, as_json: bool) -> dict[str, Any]:
    from dspark.bench.document import report_document

    with open_files(find_files(choice, work.runtime), work.runtime, work.engine) as session:
        from dspark.bench.runner import run_bench

        report = follow_bench(run_bench(session, encode_all(session, work.texts), work.config))
    if not as_json:
        _print_report(session, work.config, report)
    return report_document(
        report, work.config, work.engine, session.name, session.runtime, _command()
    )


def _bench_load(
    choice: PairChoice, work: Work, counts: Sequence[int], as_json: bool
) -> dict[str, Any]:
    from dspark.bench.document import load_document

    with open_files(find_files(choice, work.runtime), work.runtime, work.engine) as session:
        from dspark.bench.concurrency import run_load

        prompts = encode_all(session, work.texts)
        report = follow_bench(run_load(session, prompts, counts, work.config), is_timed=False)
    if not as_json:
        from dspark_cli.views.concurrency import print_load

        _print_title(session, work.config, f"median of {counted(report.trials, 'trial')}")
        print_load(report)
    return load_document(report, work.config, session.name, session.runtime, _command())


def _print_report(session: "Session", config: BenchConfig, report: "BenchReport") -> None:
    _print_title(session, config, f"median of {counted(report.trials, 'trial')}")
    if report.is_partial:
        print(wrapped(partial_line(report)) + "\n")
    print(bench_table(report))


def _compare_heads(
    choice: PairChoice, heads: Mapping[str, str], work: Work, is_tau_only: bool, as_json: bool
) -> dict[str, Any]:
    from dspark.bench.document import comparison_document

    with open_drafters(choice, heads, work.runtime, work.engine) as opened:
        from dspark.bench.comparison import compare

        prompts = encode_all(opened.plain, work.texts)
        items = compare(opened, prompts, work.config, is_timed=not is_tau_only)
        comparison = follow_bench(items, is_timed=not is_tau_only)
    if not as_json:
        _print_heads(opened.plain, work.config, comparison)
    return comparison_document(comparison, work.config, work.engine, opened, _command())


def _print_heads(session: "Session", config: BenchConfig, comparison: "Comparison") -> None:
    from dspark_cli.views.comparison import print_comparison

    report = comparison.heads[0].report
    is_timed = comparison.is_timed
    trials = f"median of {counted(report.trials, 'trial')}"
    _print_title(session, config, trials if is_timed else "whole blocks verified")
    if comparison.is_partial:
        print(wrapped(partial_line(report)) + "\n")
    print_comparison(comparison)


def _command() -> str:
    return shlex.join(["dspark", *sys.argv[1:]])


def _print_title(session: "Session", config: BenchConfig, method: str) -> None:
    title = (
        f"{session.name} on {session.runtime.device} in {session.runtime.dtype}, at most "
        f"{counted(config.max_tokens, 'token')} per prompt, {method}"
    )
    print(wrapped(title) + "\n")
