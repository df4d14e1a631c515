"""Our plain decoding and DSpark beside llama.cpp on the same GGUF: same prompts, greedy, one run.

python benchmarks/vs_llama_cpp.py model.gguf --binaries llama.cpp/build/bin

llama.cpp runs as its own server, one for each way of drafting that needs no second model, and
programs take turns prompt by prompt. llama-bench's figures are taken between the trials. How to
build it: docs/performance.md.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
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
from dspark.bench.peers.against import agreement, decode_figure
from dspark.bench.peers.arm import Answer, our_arms
from dspark.bench.peers.llama_server import LlamaServer, find_binary, llama_arms
from dspark.config import DEFAULT_PAIR, EngineConfig, PairChoice, RuntimeConfig
from dspark_cli.loading import find_files, open_files

BENCH_TOKENS = {"-p": 512, "-n": 128}


def llama_bench(binary: Path, model: Path, threads: int) -> dict[str, float]:
    """Tokens per second of a prompt and of an answer, as llama-bench has them."""
    command = [str(binary), "-m", str(model), "-t", str(threads), "-o", "json"]
    command += [str(word) for pair in BENCH_TOKENS.items() for word in pair] + ["-r", "1"]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    rows = json.loads(run.stdout)
    return {"prompt" if row["n_gen"] == 0 else "decode": row["avg_ts"] for row in rows}


def build_document(
    answers: dict[str, list[list[Answer]]], bench: list[dict[str, float]], settings: dict[str, Any]
) -> dict[str, Any]:
    decode = {name: decode_figure(trials) for name, trials in answers.items()}
    theirs = [name for name in decode if name.startswith("llama.cpp")]
    best = max(theirs, key=lambda name: decode[name].median)
    ours = [name for name in decode if name not in theirs]
    return {
        "programs": {
            name: program_object(
                trials,
                prompts_written_like_plain=agreement(
                    trials, answers["plain" if name in ours else theirs[0]]
                ),
                prompts_written_like_llama_cpp=agreement(trials, answers[theirs[0]]),
            )
            for name, trials in answers.items()
        },
        "llama_bench": {
            kind: statistics.median(each[kind] for each in bench) for kind in ("prompt", "decode")
        },
        "best_llama_cpp": best,
        "over_llama_cpp_plain": times_over(decode, ours, theirs[0]),
        "over_best_llama_cpp": times_over(decode, ours, best),
        "settings": settings,
        **provenance(shlex.join(["python", *sys.argv])),
    }


def print_table(document: dict[str, Any]) -> None:
    print_programs(document)
    for name, ratio in document["over_llama_cpp_plain"].items():
        best = document["over_best_llama_cpp"][name]
        print(f"{name}: {ratio:.2f} times llama.cpp plain, {best:.2f} times its best")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the GGUF that llama.cpp reads")
    parser.add_argument("--binaries", type=Path, required=True)
    parser.add_argument("--pair", default=DEFAULT_PAIR, help="the same model and its head")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    add_options(parser, "vs-llama-cpp-cpu.json")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    server = LlamaServer(find_binary(arguments.binaries), arguments.model, arguments.threads)
    bench_binary = find_binary(arguments.binaries, "llama-bench")
    files = find_files(PairChoice(arguments.pair, arguments.target, arguments.draft))
    with ExitStack() as stack:
        runtime = RuntimeConfig(device="cpu")
        session = stack.enter_context(open_files(files, runtime, EngineConfig()))
        prompts = encoded_prompts(session, arguments.prompts)
        arms = [*our_arms(session), *stack.enter_context(llama_arms(server))]
        answers: dict[str, list[list[Answer]]] = {arm.name: [] for arm in arms}
        bench = []
        for _ in range(arguments.trials):
            for name, trials in measure(arms, prompts, 1, arguments.max_tokens).items():
                answers[name] += trials
            bench.append(llama_bench(bench_binary, arguments.model, arguments.threads))
        settings = settings_object(session, arguments, len(prompts))
        settings |= {"model": arguments.model.name, "threads": arguments.threads}
    document = build_document(answers, bench, settings)
    print_table(document)
    write_document(arguments.json, document)


if __name__ == "__main__":
    main()
