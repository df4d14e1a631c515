"""`dspark generate`: one answer on stdout, everything else on stderr."""

import json
from contextlib import closing, nullcontext
from typing import Annotated

import typer

from dspark.config import DEFAULT_PAIR, MAX_TOKENS, PairChoice, RuntimeConfig
from dspark.errors import InputError, UnknownNameError
from dspark_cli import options
from dspark_cli.loading import find_files, open_files
from dspark_cli.output.tables import say
from dspark_cli.prompt import encode_prompt, parse_token_ids, read_prompt

EXAMPLES = (
    'dspark generate "Why is the sky blue?"',
    'dspark generate "Name three birds." --pair qwen3-4b --temperature 0.7 --seed 1',
    "dspark generate --json --max-tokens 100 < prompt.txt",
)

TokenIds = Annotated[
    str | None, typer.Option(metavar="1,2,3", help="The prompt as token ids instead of text.")
]
FirstWord = Annotated[
    str | None,
    typer.Argument(metavar="PAIR", help="A pair, if a prompt follows; alone it is the prompt."),
]
SecondWord = Annotated[
    str | None, typer.Argument(metavar="PROMPT", help="The prompt; default: all of stdin.")
]
GivenPair = Annotated[
    str | None,
    typer.Option(
        "--pair",
        "-p",
        metavar="PAIR",
        help="A pair (see dspark list), a folder, a GGUF file or a Hugging Face id.",
        show_default=DEFAULT_PAIR,
        rich_help_panel=options.MODEL,
        autocompletion=options.complete_pair,
    ),
]
Raw = Annotated[
    bool,
    typer.Option(
        "--raw", help="Send the prompt without a chat template and do not separate thinking."
    ),
]


def generate(
    first: FirstWord = None,
    second: SecondWord = None,
    pair: GivenPair = None,
    target: options.Target = None,
    draft: options.Draft = None,
    token_ids: TokenIds = None,
    raw: Raw = False,
    effort: options.EffortOption = None,
    device: options.Device = options.RUNTIME.device,
    dtype: options.DtypeOption = options.RUNTIME.dtype,
    draft_weights: options.DraftWeightsOption = options.RUNTIME.draft_weights,
    kv: options.KVOption = options.RUNTIME.kv,
    temperature: options.Temperature = options.SAMPLING.temperature,
    top_k: options.TopK = options.SAMPLING.top_k,
    top_p: options.TopP = options.SAMPLING.top_p,
    seed: options.Seed = options.SAMPLING.seed,
    max_tokens: options.MaxTokens = MAX_TOKENS,
    stop: options.StopStrings = None,
    confidence_threshold: options.Threshold = None,
    schedule: options.ScheduleOption = None,
    trace: options.Trace = None,
    as_json: options.Json = False,
) -> None:
    """Write one answer to stdout."""
    from dspark.chat.backend import info_of
    from dspark.chat.trace import TraceFile
    from dspark_cli.output.answer import answer_object, settings_object, stats_line
    from dspark_cli.output.answer_stream import follow_answer

    named, prompt = pair_and_prompt(first, second)
    engine = options.engine_config(confidence_threshold, schedule, max_requests=1)
    sampling = options.sampling_config(temperature, top_k, top_p, seed)
    stopping = options.stop_config(max_tokens, stop)
    if token_ids is not None and prompt is not None:
        raise InputError("a prompt and --token-ids exclude each other", "Give one of them.")
    if effort is not None and (raw or token_ids is not None):
        raise InputError("--effort needs the chat template", "Leave --raw and --token-ids out.")
    given_ids = None if token_ids is None else parse_token_ids(token_ids)
    text = "" if given_ids else read_prompt(prompt)
    runtime = RuntimeConfig(device, dtype, draft_weights, kv)
    written = None if trace is None else TraceFile(trace)

    files = find_files(PairChoice(options.one_pair(named, pair, target), target, draft), runtime)
    with (
        open_files(files, runtime, engine) as session,
        closing(written) if written else nullcontext(),
    ):
        prompt_ids = given_ids or encode_prompt(session, text, raw, effort)
        has_text = session.tokenizer is not None
        events = session.generate(prompt_ids, sampling, stopping, is_raw=raw)
        if written is not None:
            asked = text or str(token_ids)
            events = written.traced(asked, info_of(session), sampling, events)
        rounds, finished = follow_answer(events, writes=not as_json, has_text=has_text)

    if as_json:
        settings = settings_object(files, session.runtime, sampling, stopping, engine)
        answer = answer_object(prompt_ids, rounds, finished, has_text)
        print(json.dumps({**settings, **answer}))
    else:
        note = "" if finished.text or not finished.thinking else " · only thinking, no answer yet"
        say(f"{session.name}: {stats_line(finished.stats, sampling)}{note}")


def pair_and_prompt(first: str | None, second: str | None) -> tuple[str | None, str | None]:
    """A single argument is the prompt."""
    if first is None or second is None:
        return None, first
    from dspark.hub.settle import check_known

    try:
        check_known(first)
    except UnknownNameError as error:
        hint = f'A prompt of several words needs quotes: dspark generate "{first} {second}".'
        raise InputError(error.message, hint) from error
    return first, second
