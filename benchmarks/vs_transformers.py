"""Our plain decoding and DSpark against transformers' generate: same prompts, greedy, one run.
Each program has a process of its own; `dspark bench --against transformers` is the short form.

python benchmarks/vs_transformers.py demo --json benchmarks/results/vs-transformers-cpu.json
"""

import argparse
import shlex
import sys
from contextlib import ExitStack
from typing import Any

from peers import (
    add_options,
    encoded_prompts,
    measure,
    print_programs,
    program_object,
    settings_object,
    times_over,
)

from dspark.bench.document import provenance, write_document
from dspark.bench.peers.against import decode_figure
from dspark.bench.peers.arm import Answer, our_arms
from dspark.bench.peers.worker_process import transformers_arm
from dspark.config import EngineConfig, PairChoice, RuntimeConfig
from dspark_cli.loading import find_files, open_files
from dspark_cli.options import DEFAULT_PAIR

DTYPES = ("float32", "bfloat16")


def build_document(
    answers: dict[str, list[list[Answer]]], settings: dict[str, Any]
) -> dict[str, Any]:
    decode = {name: decode_figure(trials) for name, trials in answers.items()}
    peers = [name for name in decode if name.startswith("transformers")]
    best = max(peers, key=lambda name: decode[name].median)
    reference = [each.token_ids for each in answers["plain"][0]]
    return {
        "programs": {
            name: program_object(
                trials,
                prompts_written_like_plain=sum(
                    each.token_ids == expected
                    for each, expected in zip(trials[0], reference, strict=True)
                ),
            )
            for name, trials in answers.items()
        },
        "best_transformers": best,
        "over_best_transformers": times_over(
            decode, [name for name in decode if name not in peers], best
        ),
        "settings": settings,
        **provenance(shlex.join(["python", *sys.argv])),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", nargs="?", default=DEFAULT_PAIR)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="ours; transformers runs in both")
    add_options(parser, "vs-transformers.json")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    files = find_files(PairChoice(arguments.pair, arguments.target, arguments.draft))
    runtime = RuntimeConfig(device=arguments.device, dtype=arguments.dtype)
    with ExitStack() as stack:
        session = stack.enter_context(open_files(files, runtime, EngineConfig()))
        prompts = encoded_prompts(session, arguments.prompts)
        device, arms = session.runtime.device, our_arms(session)
        for dtype in DTYPES:
            arms.append(stack.enter_context(transformers_arm(files.target, device, dtype)))
        answers = measure(arms, prompts, arguments.trials, arguments.max_tokens)
        settings = settings_object(session, arguments, len(prompts)) | {"device": device}
    document = build_document(answers, settings)
    print_programs(document)
    for name, ratio in document["over_best_transformers"].items():
        print(f"{name} decodes at {ratio:.2f} times {document['best_transformers']}")
    write_document(arguments.json, document)


if __name__ == "__main__":
    main()
