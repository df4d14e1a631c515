"""`dspark race`: two ways to write one answer, side by side."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from dspark.bench.config import PLAIN, RACE_TOKENS
from dspark.config import EngineConfig, PairChoice, RuntimeConfig
from dspark.errors import InputError
from dspark_cli import options
from dspark_cli.commands.generate import FirstWord, GivenPair, SecondWord, pair_and_prompt
from dspark_cli.drafters import open_drafters, parse_drafters
from dspark_cli.errors import ExitCode
from dspark_cli.loading import find_files, open_files
from dspark_cli.output.facts import print_json
from dspark_cli.prompt import encode_prompt, read_prompt
from dspark_cli.shown_drafts import showing_drafts

if TYPE_CHECKING:
    from dspark.bench.race import RaceResult, Runner

EXAMPLES = (
    'dspark race "Why is the sky blue?"',
    'dspark race qwen3-4b "Write a haiku about rain." --temperature 0.7 --seed 1',
    'dspark race "Name three birds." --drafters mine=./my-head,lookup=lookup',
)

Drafters = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=HEAD,NAME=HEAD",
        help="Race two heads, each a folder or a Hugging Face id, instead of plain decoding.",
        rich_help_panel=options.MODEL,
    ),
]


def race(
    first: FirstWord = None,
    second: SecondWord = None,
    pair: GivenPair = None,
    target: options.Target = None,
    draft: options.Draft = None,
    drafters: Drafters = None,
    device: options.Device = options.RUNTIME.device,
    dtype: options.DtypeOption = options.RUNTIME.dtype,
    draft_weights: options.DraftWeightsOption = options.RUNTIME.draft_weights,
    kv: options.KVOption = options.RUNTIME.kv,
    temperature: options.Temperature = options.SAMPLING.temperature,
    top_k: options.TopK = options.SAMPLING.top_k,
    top_p: options.TopP = options.SAMPLING.top_p,
    seed: options.Seed = options.SAMPLING.seed,
    max_tokens: options.MaxTokens = RACE_TOKENS,
    confidence_threshold: options.Threshold = None,
    schedule: options.ScheduleOption = None,
    as_json: options.Json = False,
) -> None:
    """Let plain decoding and DSpark write the same answer, side by side on one clock.

    Whoever is behind takes the next step, so both have had the same time at any moment. The exit
    code is 1 if the texts differ.
    """
    from dspark.progress import follow

    named, prompt = pair_and_prompt(first, second)
    heads = parse_drafters(drafters or [])
    if heads and (len(heads) != 2 or draft is not None):
        raise InputError(
            "--drafters takes two heads, and no --draft beside them",
            "For example --drafters mine=./my-head,lookup=lookup.",
        )
    engine = options.engine_config(confidence_threshold, schedule, max_requests=1)
    sampling = options.sampling_config(temperature, top_k, top_p, seed)
    stop, text = options.stop_config(max_tokens, None), read_prompt(prompt)
    runtime = RuntimeConfig(device, dtype, draft_weights, kv)
    choice = PairChoice(options.one_pair(named, pair, target), target, draft)
    if schedule is None and confidence_threshold is None and target is None:
        engine = showing_drafts(choice.pair, engine)
    with _runners(choice, heads, runtime, engine) as runners:
        from dspark.bench import race as racing
        from dspark.chat.race_view import verdict
        from dspark_cli.output.tables import fitted
        from dspark_cli.views.race import lap_lines, race_view

        ids = encode_prompt(runners[0].session, text, False)
        with race_view([each.name for each in runners], is_shown=not as_json) as show:
            result = follow(racing.race(runners, ids, sampling, stop), show)
    if as_json:
        print_json(_race_object(result))
    else:
        print(fitted("\n".join([*lap_lines(result), verdict(result)]), sys.stdout))
    if result.is_identical is False:
        raise typer.Exit(ExitCode.FAILED)


@contextmanager
def _runners(
    choice: PairChoice, heads: dict[str, str], runtime: RuntimeConfig, engine: EngineConfig
) -> Iterator["list[Runner]"]:
    """Plain decoding and the pair's own drafter, or the two heads."""
    if heads:
        with open_drafters(choice, heads, runtime, engine) as opened:
            from dspark.bench.race import Runner

            yield [Runner(each.name, each.session) for each in opened.heads]
        return
    with open_files(find_files(choice, runtime), runtime, engine) as session:
        from dspark.bench.race import Runner

        if not session.has_drafter:
            raise InputError(
                f"{session.name} has no head to race with", "Name one with --draft or --drafters."
            )
        with session.with_schedule(engine.schedule) as alone:
            yield [Runner(PLAIN, alone, plain=True), Runner(session.name, session)]


def _race_object(result: "RaceResult") -> dict[str, object]:
    from dspark_cli.output.answer import stats_object

    return {
        "is_identical": result.is_identical,
        "speedup": result.speedup,
        "runners": [
            {
                "name": lap.name,
                "seconds": lap.seconds,
                "tokens_per_second": lap.tokens_per_second,
                "token_ids": list(lap.finished.token_ids),
                "text": lap.finished.text,
                "stats": stats_object(lap.finished.stats),
            }
            for lap in result.laps
        ],
    }
