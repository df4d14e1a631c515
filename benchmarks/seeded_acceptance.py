"""The cost of a seed: accepted length τ and time of a round, coupling against rejection sampling.

python benchmarks/seeded_acceptance.py demo --json benchmarks/results/seeded-acceptance-cpu.json
"""

import argparse
import math
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dspark.bench.document import provenance, write_document
from dspark.bench.prompts import own_prompts
from dspark.config import (
    EngineConfig,
    PairChoice,
    RuntimeConfig,
    SamplingConfig,
    ScheduleConfig,
    StopConfig,
)
from dspark.engine.request import Request
from dspark.engine.session import Session
from dspark.events import DecodeStats, Finished
from dspark_cli.loading import find_files, open_files
from dspark_cli.prompt import encode_prompt

RULES = ("rejection", "coupling")


def sampling_of(rule: str, temperature: float, seed: int) -> SamplingConfig:
    return SamplingConfig(temperature, seed=seed if rule == "coupling" else None)


def answers(
    session: Session,
    prompts: Sequence[Sequence[int]],
    rule: str,
    temperature: float,
    stop: StopConfig,
) -> list[DecodeStats]:
    """Figures of every answer, many written at a time."""
    requests = [
        Request(tuple(ids), sampling_of(rule, temperature, seed), stop)
        for seed, ids in enumerate(prompts)
    ]
    return [e.stats for e in session.engine.run(requests) if isinstance(e, Finished)]


def accepted_length(stats: Sequence[DecodeStats]) -> dict[str, float]:
    """τ over all rounds; its standard error takes the rounds of one answer as bound together."""
    rounds = sum(each.rounds for each in stats)
    tau = 1 + sum(each.accepted for each in stats) / rounds
    left_over = [each.accepted + each.rounds - tau * each.rounds for each in stats]
    error = math.sqrt(sum(x * x for x in left_over)) / rounds
    tokens = sum(each.new_tokens for each in stats)
    return {"tau": tau, "standard_error": error, "rounds": rounds, "tokens": tokens}


def round_ratio(
    session: Session, prompts: Sequence[Sequence[int]], temperature: float, stop: StopConfig
) -> dict[str, Any]:
    """Seconds of a round with a seed over those without, one answer at a time, rules in turns."""
    ratios = []
    for index, ids in enumerate(prompts):
        seconds = {}
        for rule in RULES if index % 2 else RULES[::-1]:
            *_, last = session.generate(ids, sampling_of(rule, temperature, index), stop)
            assert isinstance(last, Finished)
            seconds[rule] = last.stats.decode_seconds / last.stats.rounds
        ratios.append(seconds["coupling"] / seconds["rejection"])
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pair", nargs="?", default="demo")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.7, 1.0])
    parser.add_argument("--answers", type=int, default=4, help="of each prompt and rule")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    config = EngineConfig(schedule=ScheduleConfig("full"), entropy=0)
    stop, timed = StopConfig(options.max_tokens), StopConfig(24)
    results: dict[str, Any] = {}
    with open_files(find_files(PairChoice(options.pair)), RuntimeConfig(), config) as session:
        prompts = [encode_prompt(session, each.text, False) for each in own_prompts()]
        for temperature in options.temperatures:
            rows = {
                rule: accepted_length(
                    answers(session, prompts * options.answers, rule, temperature, stop)
                )
                for rule in RULES
            }
            by_rejection, by_coupling = (rows[rule] for rule in RULES)
            ratio = (by_coupling["tau"] - 1) / (by_rejection["tau"] - 1)
            cost = {"accepted_drafts_ratio": ratio}
            cost["round_seconds_ratio"] = round_ratio(session, prompts[::2], temperature, timed)
            results[str(temperature)] = {**rows, **cost}
            for rule, row in rows.items():
                print(f"T {temperature}, {rule}: τ {row['tau']:.3f} ± {row['standard_error']:.3f}")
            print(f"T {temperature}: {cost}", flush=True)
            if options.json:
                settings = {"pair": options.pair, "prompts": len(prompts)}
                settings |= {"answers": options.answers, "max_tokens": options.max_tokens}
                document = {"by_temperature": results, "settings": {**settings, "schedule": "full"}}
                command = shlex.join(["python", *sys.argv])
                write_document(options.json, {**document, **provenance(command)})


if __name__ == "__main__":
    main()
