"""What the comparisons with other programs share: arms that take turns, their rates, the table."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark.bench.document import figure_object
from dspark.bench.prompts import own_prompts
from dspark.bench.report import Figure
from dspark.config import SamplingConfig, StopConfig
from dspark.engine.session import Session
from dspark.events import Finished
from dspark_cli.prompt import encode_prompt

RESULTS = Path(__file__).parent / "results"
WARMUP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """New tokens, the time to the first of them, and the time from there to the last."""

    token_ids: tuple[int, ...]
    prefill_seconds: float
    decode_seconds: float


Arm = Callable[[Sequence[int], int], Answer]
Trials = Sequence[Sequence[Answer]]


def our_arms(session: Session) -> dict[str, Arm]:
    """Without drafts, and with a drafter where there is one."""
    arms = {"plain": _our_arm(session, plain=True)}
    if session.has_drafter:
        arms["dspark"] = _our_arm(session, plain=False)
    return arms


def _our_arm(session: Session, plain: bool) -> Arm:
    def answer(prompt_ids: Sequence[int], max_tokens: int) -> Answer:
        stop = StopConfig(max_tokens=max_tokens)
        for event in session.generate(prompt_ids, SamplingConfig(), stop, plain=plain):
            if isinstance(event, Finished):
                stats = event.stats
                return Answer(event.token_ids, stats.prefill_seconds, stats.decode_seconds)
        raise AssertionError("a decode ends with Finished")

    return answer


def encoded_prompts(session: Session, count: int | None) -> list[list[int]]:
    """Our own prompts through the chat template, only the first `count`."""
    texts = [each.text for each in own_prompts()[:count]]
    return [encode_prompt(session, text, is_raw=False) for text in texts]


def measure(
    arms: dict[str, Arm], prompts: Sequence[Sequence[int]], trials: int, max_tokens: int
) -> dict[str, list[list[Answer]]]:
    """Answers of each arm, trial by trial. Who goes first moves on with every prompt."""
    answers: dict[str, list[list[Answer]]] = {name: [] for name in arms}
    for name in arms:
        arms[name](prompts[0], WARMUP_TOKENS)
    for trial in range(trials):
        for name in arms:
            answers[name].append([])
        for index, prompt in enumerate(prompts):
            for name in _rotated(list(arms), trial + index):
                answers[name][trial].append(arms[name](prompt, max_tokens))
            print(f"trial {trial + 1}, prompt {index + 1} of {len(prompts)}", file=sys.stderr)
    return answers


def _rotated(names: list[str], by: int) -> Iterator[str]:
    start = by % len(names)
    yield from names[start:] + names[:start]


def decode_figure(trials: Trials) -> Figure:
    """Tokens after the first per second of decoding, by trial."""
    return Figure(
        tuple(
            sum(len(each.token_ids) - 1 for each in answers)
            / sum(each.decode_seconds for each in answers)
            for answers in trials
        )
    )


def program_object(trials: Trials, **counts: int) -> dict[str, Any]:
    """One program's part of the document; `counts` are its prompts answered as others do."""
    end_to_end = tuple(
        sum(len(each.token_ids) for each in answers)
        / sum(each.prefill_seconds + each.decode_seconds for each in answers)
        for answers in trials
    )
    return {
        "decode": figure_object(decode_figure(trials)),
        "end_to_end": figure_object(Figure(end_to_end)),
        **counts,
    }


def times_over(decode: Mapping[str, Figure], ours: Sequence[str], peer: str) -> dict[str, float]:
    """How many times as fast as the peer each of our arms decodes."""
    return {name: decode[name].paired_ratio(decode[peer]).median for name in ours}


def settings_object(
    session: Session, arguments: argparse.Namespace, prompts: int
) -> dict[str, Any]:
    return {
        "pair": session.name,
        "dtype": session.runtime.dtype,
        "prompts": prompts,
        "trials": arguments.trials,
        "max_tokens": arguments.max_tokens,
        "temperature": 0.0,
    }


def print_programs(document: Mapping[str, Any]) -> None:
    total, width = document["settings"]["prompts"], 2 + max(map(len, document["programs"]))
    print(f"{'tokens per second':{width}}{'decode':>10}{'end to end':>12}{'like plain':>12}")
    for name, program in document["programs"].items():
        print(
            f"{name:{width}}{program['decode']['median']:10.1f}"
            f"{program['end_to_end']['median']:12.1f}"
            f"{program['prompts_written_like_plain']:>9}/{total}"
        )


def add_options(parser: argparse.ArgumentParser, result: str) -> None:
    """What every comparison asks for; `result` is its default file in results/."""
    parser.add_argument("--target")
    parser.add_argument("--draft")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=None, help="only the first N")
    parser.add_argument("--json", type=Path, default=RESULTS / result)
