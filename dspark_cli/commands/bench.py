"""`dspark bench`: plain decoding and DSpark on the same prompts, in turns."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspark.bench.config import BenchConfig
from dspark.bench.prompts import PromptText, own_prompts, read_prompts
from dspark.config import EngineConfig, RuntimeConfig
from dspark.errors import InputError
from dspark_cli import options
from dspark_cli.bench_run import encode_all, follow_bench
from dspark_cli.bench_table import bench_table
from dspark_cli.drafters import check_drafters, open_drafters, parse_drafters
from dspark_cli.loading import PairChoice, open_choice

if TYPE_CHECKING:
    from dspark.engine.session import Session

DEFAULTS = BenchConfig()


def bench(
    pair: options.PairArgument = options.DEFAULT_PAIR,
    target: options.Target = None,
    draft: options.Draft = None,
    trials: Annotated[int, typer.Option(min=1, help="Runs over all prompts.")] = DEFAULTS.trials,
    max_tokens: options.MaxTokens = DEFAULTS.max_tokens,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Your own prompts: JSON lines with prompt and category; repeatable.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the first N prompts of a file.")
    ] = None,
    drafters: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=HEAD,...",
            help="Compare several heads, each a folder or a hub id, on one target; repeatable.",
        ),
    ] = None,
    tau_only: Annotated[
        bool,
        typer.Option(
            "--tau-only",
            help="With --drafters: many answers at a time, whole blocks verified, no speeds.",
        ),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to this file.")
    ] = None,
    device: options.Device = options.RUNTIME.device,
    dtype: options.DtypeOption = options.RUNTIME.dtype,
    draft_weights: options.DraftWeightsOption = options.RUNTIME.draft_weights,
    temperature: options.Temperature = DEFAULTS.sampling.temperature,
    top_k: options.TopK = DEFAULTS.sampling.top_k,
    top_p: options.TopP = DEFAULTS.sampling.top_p,
    seed: options.Seed = DEFAULTS.sampling.seed,
    confidence_threshold: options.Threshold = None,
    schedule: options.ScheduleOption = None,
) -> None:
    """Measure plain decoding and DSpark side by side, and check that they write the same."""
    from dspark.bench.document import write_document

    heads = parse_drafters(drafters or [])
    has_schedule = schedule is not None or confidence_threshold is not None
    check_drafters(heads, draft, is_tau_only=tau_only, has_schedule=has_schedule)
    engine = options.engine_config(confidence_threshold, "full" if tau_only else schedule)
    config = BenchConfig(
        trials=1 if tau_only else trials,
        max_tokens=max_tokens,
        sampling=options.sampling_config(temperature, top_k, top_p, seed),
    )
    sets = [read_prompts(path) for path in prompts] if prompts else [own_prompts()]
    texts = [text for each in sets for text in each[:limit]]
    if json_file and not json_file.absolute().parent.is_dir():
        raise InputError(f"there is no folder for {json_file}", "Make it first, or check --json.")
    choice, runtime = PairChoice(pair, target, draft), RuntimeConfig(device, dtype, draft_weights)
    if heads:
        document = _compare_heads(choice, heads, texts, config, runtime, engine, tau_only)
    else:
        document = _bench_pair(choice, texts, config, runtime, engine)
    if json_file:
        write_document(json_file, document)


def _bench_pair(
    choice: PairChoice,
    texts: Sequence[PromptText],
    config: BenchConfig,
    runtime: RuntimeConfig,
    engine: EngineConfig,
) -> dict[str, Any]:
    from dspark.bench.document import report_document

    with open_choice(choice, runtime, engine) as session:
        from dspark.bench.runner import run_bench

        report = follow_bench(run_bench(session, encode_all(session, texts), config))
    print(_title(session, config, f"median of {config.trials}"))
    print(bench_table(report))
    return report_document(report, config, engine, session.name, session.runtime, _command())


def _compare_heads(
    choice: PairChoice,
    heads: Mapping[str, str],
    texts: Sequence[PromptText],
    config: BenchConfig,
    runtime: RuntimeConfig,
    engine: EngineConfig,
    is_tau_only: bool,
) -> dict[str, Any]:
    from dspark.bench.document import comparison_document
    from dspark_cli.comparison_table import print_comparison  # Rich takes its time to start

    with open_drafters(choice, heads, runtime, engine) as opened:
        from dspark.bench.comparison import compare

        prompts = encode_all(opened.plain, texts)
        items = compare(opened, prompts, config, is_timed=not is_tau_only)
        comparison = follow_bench(items, is_timed=not is_tau_only)
    method = "whole blocks verified" if is_tau_only else f"median of {config.trials}"
    print(_title(opened.plain, config, method))
    print_comparison(comparison)
    return comparison_document(comparison, config, engine, opened, _command())


def _command() -> str:
    return shlex.join(["dspark", *sys.argv[1:]])


def _title(session: "Session", config: BenchConfig, method: str) -> str:
    return (
        f"{session.name} on {session.runtime.device} in {session.runtime.dtype}, at most "
        f"{config.max_tokens} tokens per prompt, {method}\n"
    )
