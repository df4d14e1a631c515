"""Our plain decoding and DSpark against transformers' generate: same prompts, greedy, one run.

python benchmarks/vs_transformers.py demo --json benchmarks/results/vs-transformers-cpu.json
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from transformers.generation.streamers import BaseStreamer

from dspark.bench.document import provenance, write_document
from dspark.config import EngineConfig, PairChoice, RuntimeConfig
from dspark.engine.session import Session
from dspark.hub.catalog.pairs import PairFiles
from dspark.targets.hf_model import read_hf_model
from dspark_cli.loading import find_files, open_files
from dspark_cli.options import DEFAULT_PAIR


class FirstTokenClock(BaseStreamer):
    """Notes when the first new token comes. transformers hands over the prompt first."""

    def __init__(self) -> None:
        self.calls = 0
        self.first_token_at = 0.0

    def put(self, value: torch.Tensor) -> None:
        self.calls += 1
        if self.calls == 2:
            self.first_token_at = time.perf_counter()

    def end(self) -> None:
        """Nothing to close."""


def transformers_arm(folder: Path, device: str, dtype: torch.dtype) -> Arm:
    """Of the numbers, where a folder holds GGUF codes, which transformers does not read."""
    model: Any = read_hf_model(folder, device=torch.device(device), dtype=dtype)

    @torch.inference_mode()
    def answer(prompt_ids: Sequence[int], max_tokens: int) -> Answer:
        ids = torch.tensor([list(prompt_ids)], device=device)
        clock = FirstTokenClock()
        started = time.perf_counter()
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            streamer=clock,
        )
        token_ids = tuple(written[0, len(prompt_ids) :].tolist())
        ended = time.perf_counter()
        return Answer(token_ids, clock.first_token_at - started, ended - clock.first_token_at)

    return answer


def build_arms(session: Session, files: PairFiles) -> dict[str, Arm]:
    arms = our_arms(session)
    for dtype in (torch.float32, torch.bfloat16):
        name = f"transformers {str(dtype).removeprefix('torch.')}"
        arms[name] = transformers_arm(files.target, session.runtime.device, dtype)
    return arms


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
    with open_files(files, runtime, EngineConfig()) as session:
        prompts = encoded_prompts(session, arguments.prompts)
        arms = build_arms(session, files)
        answers = measure(arms, prompts, arguments.trials, arguments.max_tokens)
        settings = settings_object(session, arguments, len(prompts))
        settings["device"] = session.runtime.device
    document = build_document(answers, settings)
    print_programs(document)
    for name, ratio in document["over_best_transformers"].items():
        print(f"{name} decodes at {ratio:.2f} times {document['best_transformers']}")
    write_document(arguments.json, document)


if __name__ == "__main__":
    main()
