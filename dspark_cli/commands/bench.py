"""`dspark bench`: plain decoding and DSpark on the same prompts, in turns."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dspark.bench.config import BenchConfig
from dspark.bench.prompts import BenchPrompt, own_prompts, read_prompts
from dspark.bench.report import BenchReport
from dspark.config import RuntimeConfig
from dspark.errors import InputError
from dspark_cli import options
from dspark_cli.bench_table import bench_table
from dspark_cli.loading import PairChoice, open_choice, progress_bars
from dspark_cli.prompt import encode_prompt

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
        Path | None,
        typer.Option(metavar="FILE", help="Your own prompts: JSON lines with category and prompt."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to this file.")
    ] = None,
    device: options.Device = options.RUNTIME.device,
    dtype: options.DtypeOption = options.RUNTIME.dtype,
    temperature: options.Temperature = DEFAULTS.sampling.temperature,
    top_k: options.TopK = DEFAULTS.sampling.top_k,
    top_p: options.TopP = DEFAULTS.sampling.top_p,
    seed: options.Seed = DEFAULTS.sampling.seed,
    confidence_threshold: options.Threshold = None,
    schedule: options.ScheduleOption = None,
) -> None:
    """Measure plain decoding and DSpark side by side, and check that they write the same."""
    from dspark.bench.document import report_document, write_document

    engine = options.engine_config(confidence_threshold, schedule)
    config = BenchConfig(
        trials=trials,
        max_tokens=max_tokens,
        sampling=options.sampling_config(temperature, top_k, top_p, seed),
    )
    texts = read_prompts(prompts) if prompts else own_prompts()
    if json_file and not json_file.absolute().parent.is_dir():
        raise InputError(f"there is no folder for {json_file}", "Make it first, or check --json.")
    runtime = RuntimeConfig(device=device, dtype=dtype)

    with open_choice(PairChoice(pair, target, draft), runtime, engine) as session:
        encoded = [
            BenchPrompt(each.category, tuple(encode_prompt(session, each.text, is_raw=False)))
            for each in texts
        ]
        report = _measure(session, encoded, config)
    print(_title(session, config))
    print(bench_table(report))
    if json_file:
        command = shlex.join(["dspark", *sys.argv[1:]])
        document = report_document(report, config, engine, session.name, session.runtime, command)
        write_document(json_file, document)


def _title(session: "Session", config: BenchConfig) -> str:
    return (
        f"{session.name} on {session.runtime.device} in {session.runtime.dtype}, at most "
        f"{config.max_tokens} tokens per prompt, median of {config.trials}\n"
    )


def _measure(
    session: "Session", prompts: Sequence[BenchPrompt], config: BenchConfig
) -> BenchReport:
    from dspark.bench.runner import run_bench

    with progress_bars() as bars:
        for item in run_bench(session, prompts, config):
            if isinstance(item, BenchReport):
                return item
            latest = item.latest
            rate = f" {latest.decode_tokens_per_second:5.1f} tok/s" if latest else ""
            label = f"trial {item.trial + 1} {item.arm}{rate}" if latest else item.arm
            bars.update("bench", item.done, item.total, label)
    raise AssertionError("a bench ends with its report")
