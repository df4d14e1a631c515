"""What the comparisons with other programs share: options, measurement, document, table.

The engines themselves are those of `dspark bench --against` (dspark/bench/peers).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dspark.bench.document import figure_object
from dspark.bench.encode import encode_prompts
from dspark.bench.peers.against import answers_in_turns, decode_figure, end_to_end_figure
from dspark.bench.peers.arm import Answer, PeerArm
from dspark.bench.prompts import own_prompts
from dspark.bench.report import Figure
from dspark.engine.session import Session
from dspark.progress import follow

RESULTS = Path(__file__).parent / "results"
Trials = Sequence[Sequence[Answer]]


def encoded_prompts(session: Session, count: int | None) -> list[tuple[int, ...]]:
    """Our own prompts through the chat template, only the first `count`."""
    return [each.token_ids for each in encode_prompts(session, own_prompts()[:count])]


def measure(
    arms: Sequence[PeerArm], prompts: Sequence[Sequence[int]], trials: int, max_tokens: int
) -> dict[str, list[list[Answer]]]:
    """Answers of each arm, trial by trial, in turns; progress on stderr."""
    return follow(
        answers_in_turns(arms, prompts, trials, max_tokens),
        lambda step: print(f"{step.done} of {step.total}: {step.arm}", file=sys.stderr),
    )


def program_object(trials: Trials, **counts: int) -> dict[str, Any]:
    """One program's part of the document; `counts` are its prompts answered as others do."""
    return {
        "decode": figure_object(decode_figure(trials)),
        "end_to_end": figure_object(end_to_end_figure(trials)),
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
