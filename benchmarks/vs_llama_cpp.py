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
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from peers import (
    Answer,
    Arm,
    add_options,
    decode_figure,
    encoded_prompts,
    measure,
    our_arms,
    print_programs,
    program_object,
    settings_object,
    times_over,
)

from dspark.bench.document import provenance, write_document
from dspark.config import DEFAULT_PAIR, EngineConfig, PairChoice, RuntimeConfig
from dspark_cli.loading import find_files, open_files

DRAFTS = ("none", "ngram-simple", "ngram-map-k", "ngram-cache")
STARTS = 120.0  # seconds for a server to be ready
BENCH_TOKENS = {"-p": 512, "-n": 128}


@contextmanager
def served(binaries: Path, model: Path, threads: int, drafts: str) -> Iterator[Arm]:
    """llama-server on a free port, as an arm that takes token ids and gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(binaries / "llama-server"), "-m", str(model), "--port", str(port)]
    command += ["-t", str(threads), "-tb", str(threads), "-np", "1", "-c", "8192"]
    command += ["--no-webui", "--spec-type", drafts]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600.0, trust_env=False)
    try:
        _await(client, process)
        yield lambda prompt_ids, max_tokens: _answer(client, prompt_ids, max_tokens)
    finally:
        client.close()
        process.terminate()
        process.wait(timeout=30)


def _await(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + STARTS
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise SystemExit(f"llama-server ended with {process.returncode}")
        try:
            if client.get("/health").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit("llama-server is not ready")


def _answer(client: httpx.Client, prompt_ids: Sequence[int], max_tokens: int) -> Answer:
    asked = {"prompt": list(prompt_ids), "n_predict": max_tokens, "temperature": 0.0}
    asked |= {"cache_prompt": False, "return_tokens": True}
    reply = client.post("/completion", json=asked).raise_for_status().json()
    times = reply["timings"]
    return Answer(tuple(reply["tokens"]), times["prompt_ms"] / 1e3, times["predicted_ms"] / 1e3)


def llama_bench(binaries: Path, model: Path, threads: int) -> dict[str, float]:
    """Tokens per second of a prompt and of an answer, as llama-bench has them."""
    command = [str(binaries / "llama-bench"), "-m", str(model), "-t", str(threads), "-o", "json"]
    command += [str(word) for pair in BENCH_TOKENS.items() for word in pair] + ["-r", "1"]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    rows = json.loads(run.stdout)
    return {"prompt" if row["n_gen"] == 0 else "decode": row["avg_ts"] for row in rows}


def agreement(answers: dict[str, list[list[Answer]]], name: str, like: str) -> int:
    """Prompts that one program answers as another does, up to where the shorter one ends."""
    pairs = zip(answers[name][0], answers[like][0], strict=True)
    return sum(
        all(a == b for a, b in zip(one.token_ids, other.token_ids, strict=False))
        for one, other in pairs
    )


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
                    answers, name, "plain" if name in ours else theirs[0]
                ),
                prompts_written_like_llama_cpp=agreement(answers, name, theirs[0]),
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
    given = (arguments.binaries, arguments.model, arguments.threads)
    files = find_files(PairChoice(arguments.pair, arguments.target, arguments.draft))
    with ExitStack() as stack:
        runtime = RuntimeConfig(device="cpu")
        session = stack.enter_context(open_files(files, runtime, EngineConfig()))
        prompts = encoded_prompts(session, arguments.prompts)
        arms = our_arms(session)
        for drafts in DRAFTS:
            name = "llama.cpp" if drafts == "none" else f"llama.cpp {drafts}"
            arms[name] = stack.enter_context(served(*given, drafts))
        answers: dict[str, list[list[Answer]]] = {name: [] for name in arms}
        bench = []
        for _ in range(arguments.trials):
            for name, trials in measure(arms, prompts, 1, arguments.max_tokens).items():
                answers[name] += trials
            bench.append(llama_bench(*given))
        settings = settings_object(session, arguments, len(prompts))
        settings |= {"model": arguments.model.name, "threads": arguments.threads}
    document = build_document(answers, bench, settings)
    print_table(document)
    write_document(arguments.json, document)


if __name__ == "__main__":
    main()
