"""Our plain decoding and DSpark against transformers' generate: same prompts, greedy, one run.

python benchmarks/vs_transformers.py demo --json benchmarks/results/vs-transformers-cpu.json
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from dspark.bench.document import figure_object, provenance, write_document
from dspark.bench.prompts import own_prompts
from dspark.bench.report import Figure
from dspark.config import EngineConfig, PairChoice, RuntimeConfig, SamplingConfig, StopConfig
from dspark.engine.session import Session
from dspark.events import Finished
from dspark.hub.catalog.pairs import PairFiles
from dspark_cli.loading import find_files, open_files
from dspark_cli.options import DEFAULT_PAIR
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


def our_arm(session: Session, plain: bool) -> Arm:
    def answer(prompt_ids: Sequence[int], max_tokens: int) -> Answer:
        stop = StopConfig(max_tokens=max_tokens)
        for event in session.generate(prompt_ids, SamplingConfig(), stop, plain=plain):
            if isinstance(event, Finished):
                stats = event.stats
                return Answer(event.token_ids, stats.prefill_seconds, stats.decode_seconds)
        raise AssertionError("a decode ends with Finished")

    return answer


def transformers_arm(folder: Path, device: str, dtype: torch.dtype) -> Arm:
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = loaded.to(device).eval()

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
    device = session.runtime.device
    arms = {"plain": our_arm(session, plain=True)}
    if session.has_drafter:
        arms["dspark"] = our_arm(session, plain=False)
    for dtype in (torch.float32, torch.bfloat16):
        name = f"transformers {str(dtype).removeprefix('torch.')}"
        arms[name] = transformers_arm(files.target, device, dtype)
    return arms


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
            for name in rotated(list(arms), trial + index):
                answers[name][trial].append(arms[name](prompt, max_tokens))
            print(f"trial {trial + 1}, prompt {index + 1} of {len(prompts)}", file=sys.stderr)
    return answers


def rotated(names: list[str], by: int) -> Iterator[str]:
    start = by % len(names)
    yield from names[start:] + names[:start]


def decode_figure(trials: Sequence[Sequence[Answer]]) -> Figure:
    return Figure(
        tuple(
            sum(len(each.token_ids) - 1 for each in answers)
            / sum(each.decode_seconds for each in answers)
            for answers in trials
        )
    )


def end_to_end_figure(trials: Sequence[Sequence[Answer]]) -> Figure:
    return Figure(
        tuple(
            sum(len(each.token_ids) for each in answers)
            / sum(each.prefill_seconds + each.decode_seconds for each in answers)
            for answers in trials
        )
    )


def build_document(
    answers: dict[str, list[list[Answer]]], settings: dict[str, Any], command: str
) -> dict[str, Any]:
    decode = {name: decode_figure(trials) for name, trials in answers.items()}
    peers = [name for name in decode if name.startswith("transformers")]
    best = max(peers, key=lambda name: decode[name].median)
    ours = [name for name in decode if name not in peers]
    reference = [each.token_ids for each in answers["plain"][0]]
    return {
        "programs": {
            name: {
                "decode": figure_object(decode[name]),
                "end_to_end": figure_object(end_to_end_figure(trials)),
                "prompts_written_like_plain": sum(
                    each.token_ids == expected
                    for each, expected in zip(trials[0], reference, strict=True)
                ),
            }
            for name, trials in answers.items()
        },
        "best_transformers": best,
        "over_best_transformers": {
            name: decode[name].paired_ratio(decode[best]).median for name in ours
        },
        "settings": settings,
        **provenance(command),
    }


def print_table(document: dict[str, Any]) -> None:
    total = document["settings"]["prompts"]
    print(f"{'tokens per second':24}{'decode':>10}{'end to end':>12}{'like plain':>12}")
    for name, program in document["programs"].items():
        print(
            f"{name:24}{program['decode']['median']:10.1f}{program['end_to_end']['median']:12.1f}"
            f"{program['prompts_written_like_plain']:>9}/{total}"
        )
    for name, ratio in document["over_best_transformers"].items():
        print(f"{name} decodes at {ratio:.2f} times {document['best_transformers']}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", nargs="?", default=DEFAULT_PAIR)
    parser.add_argument("--target")
    parser.add_argument("--draft")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="ours; transformers runs in both")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=None, help="only the first N")
    parser.add_argument("--json", type=Path, default=RESULTS / "vs-transformers.json")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    files = find_files(PairChoice(arguments.pair, arguments.target, arguments.draft))
    runtime = RuntimeConfig(device=arguments.device, dtype=arguments.dtype)
    with open_files(files, runtime, EngineConfig()) as session:
        prompts = [
            encode_prompt(session, each.text, is_raw=False)
            for each in own_prompts()[: arguments.prompts]
        ]
        arms = build_arms(session, files)
        answers = measure(arms, prompts, arguments.trials, arguments.max_tokens)
        settings = {
            "pair": session.name,
            "device": session.runtime.device,
            "dtype": session.runtime.dtype,
            "prompts": len(prompts),
            "trials": arguments.trials,
            "max_tokens": arguments.max_tokens,
            "temperature": 0.0,
        }
    command = shlex.join(["python", *sys.argv])
    document = build_document(answers, settings, command)
    print_table(document)
    write_document(arguments.json, document)


if __name__ == "__main__":
    main()
