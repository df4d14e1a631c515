"""The demo's target on its stored codes: its distance from float32, its answers, its speed.

python benchmarks/cpu_target.py --json benchmarks/results/cpu-target.json

Needs the demo pair (dspark pull demo). The text is our own documentation. Distances are of the next
token's distribution, in nats, float32 first; all targets see the same text. Answers are greedy, to
everyday_prompts.txt. Speeds take turns, and a figure is the quickest of them: the machine may be
busy with other things. --llama-cpp MODEL.gguf BINARIES adds llama.cpp's distance and its prompts
on the same file, turn by turn; BINARIES holds llama-bench and llama_cpp_logits, the program that
llama_cpp_logits.cpp tells how to build.
"""

import argparse
import json
import shlex
import struct
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from dspark import hub
from dspark.bench.document import provenance, write_document
from dspark.config import EngineConfig, SamplingConfig, StopConfig
from dspark.engine.loop import Engine
from dspark.engine.request import Request
from dspark.engine.schedule.policies import FullSchedule
from dspark.events import Finished
from dspark.targets.base import Target
from dspark.targets.load import load_target
from dspark.targets.stored import StoredTarget
from dspark.text.stream import TextCodec
from dspark_kernels.cpu.runtime import Op, Program, current, keep_compiled
from dspark_kernels.cpu.step_words import Place, step_words

ROOT = Path(__file__).parents[1]
TEXTS = ("README.md", "docs/architecture.md", "docs/models.md", "docs/log.md")
STRETCH = 512  # tokens that are seen together
BEFORE = 200  # positions in the cache of a step
ROWS = (1, 5, 8, 32, 64)
REQUESTS = (1, 2, 4, 8, 16, 32, 64)
NEW_TOKENS = 48
Stretches = Sequence[torch.Tensor]
PROMPTS, ANSWER_TOKENS, START = "benchmarks/everyday_prompts.txt", 512, 40


def load(folder: Path, *, as_stored: bool) -> Target:
    place = {"device": torch.device("cpu"), "dtype": torch.float32}
    return load_target(folder, tap_layers=(), as_stored=as_stored, **place)  # type: ignore[arg-type]


def stretches(codec: TextCodec, num_tokens: int) -> Stretches:
    ids = [i for name in TEXTS for i in codec.encode((ROOT / name).read_text(encoding="utf-8"))]
    if len(ids) < num_tokens:
        sys.exit(f"our own text has {len(ids)} tokens only")
    return torch.tensor(ids[:num_tokens]).split(STRETCH)


LogProbs = Callable[[torch.Tensor], torch.Tensor]  # ids [N] -> float64 [N, V]


def distance(
    others: dict[str, LogProbs], float32: LogProbs, texts: Stretches
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[torch.Tensor]]] = defaultdict(lambda: defaultdict(list))
    for ids in texts:
        theirs = float32(ids)
        for name, other in others.items():
            ours, each = other(ids), found[name]
            each["kl"].append((theirs.exp() * (theirs - ours)).sum(-1))
            each["agrees"].append((ours.argmax(-1) == theirs.argmax(-1)).double())
            for key, logs in (("own", ours), ("float32", theirs)):
                each[key].append(-logs[:-1].gather(1, ids[1:, None]).squeeze(1))
    return {name: _figures(each) for name, each in found.items()}


def _figures(found: dict[str, list[torch.Tensor]]) -> dict[str, float]:
    whole = {name: torch.cat(parts) for name, parts in found.items()}
    return {
        "tokens": len(whole["kl"]),
        "kl_mean": float(whole["kl"].mean()),
        "kl_median": float(whole["kl"].median()),
        "kl_99th_percentile": float(whole["kl"].quantile(0.99)),
        "argmax_agreement": float(whole["agrees"].mean()),
        "cross_entropy": float(whole["own"].mean()),
        "cross_entropy_float32": float(whole["float32"].mean()),
    }


@torch.inference_mode()
def _log_probs(target: Target, ids: torch.Tensor) -> torch.Tensor:
    slot = target.open()
    try:
        return target.verify([slot], [ids]).logits.double().log_softmax(-1)
    finally:
        target.close(slot)


class LlamaCpp:
    """llama_cpp_logits.cpp in a process of its own."""

    def __init__(self, model: str, binaries: str, threads: int, vocabulary: int) -> None:
        command = [f"{binaries}/llama_cpp_logits", model, str(threads)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        self._vocabulary = vocabulary

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        asked, told = self._process.stdin, self._process.stdout
        assert asked is not None and told is not None
        asked.write(struct.pack(f"={len(ids) + 1}i", len(ids), *ids.tolist()))
        asked.flush()
        size = 4 * len(ids) * self._vocabulary
        content = bytearray(told.read(size))
        if len(content) < size:
            sys.exit("llama.cpp ended early")
        logits = torch.frombuffer(content, dtype=torch.float32)
        return logits.view(len(ids), -1).double().log_softmax(-1)


def quickest(work: Callable[[], object], turns: int) -> float:
    """Milliseconds."""
    taken = []
    for _ in range(turns):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return 1e3 * min(taken)


@torch.inference_mode()
def by_kernel(target: StoredTarget, rows: int, turns: int) -> dict[str, float]:
    """Milliseconds of a pass of so many rows of one request, kernel by kernel, then as a whole."""
    runtime = current()
    assert runtime is not None
    slot = target.open()
    target.prefill(slot, torch.arange(BEFORE) % 1000)
    block = torch.arange(rows)
    target.verify([slot], [block])
    positions = torch.arange(BEFORE, BEFORE + rows)
    place = Place(positions, torch.full((rows,), slot.index), positions + 1)
    rotary = target.rotary.upto(BEFORE + rows)
    step = step_words(place, rotary, target.pool.on_cpu(), block)
    ops: dict[str, list[Op]] = defaultdict(list)
    for op in target.ops():
        ops[op.function].append(op)
    programs = {name: Program(runtime, found) for name, found in ops.items()}
    took = {name: quickest(lambda p=each: p(step), turns) for name, each in programs.items()}
    hidden = torch.zeros(rows, target.spec.hidden_size)
    took["output head"] = quickest(lambda: target.output_head()(hidden), turns)
    took["whole verify"] = quickest(lambda: target.verify([slot], [block]), turns)
    target.close(slot)
    return took


def together(target: Target, num_requests: int) -> float:
    """Tokens per second of so many plain greedy answers at once."""
    stop = StopConfig(max_tokens=NEW_TOKENS, ignore_stop_tokens=True)
    prompts = [tuple(range(10 + i, 26 + i)) for i in range(num_requests)]
    took, answers = greedy(target, prompts, stop)
    return (sum(map(len, answers)) - num_requests) / took


def greedy(
    target: Target, prompts: Sequence[Sequence[int]], stop: StopConfig
) -> tuple[float, list[tuple[int, ...]]]:
    """Seconds from the end of the prompts on, and plain answers."""
    engine = Engine(target, None, FullSchedule(), config=EngineConfig())
    asked = [engine.submit(Request(tuple(p), SamplingConfig(), stop)) for p in prompts]
    answers: dict[int, tuple[int, ...]] = {}
    started = 0.0
    while len(answers) < len(asked):
        for event in engine.step():
            if isinstance(event, Finished):
                answers[event.request_id] = event.token_ids
        started = started or time.perf_counter()  # prompts are over
    return time.perf_counter() - started, [answers[i] for i in asked]


def answers(stored: Target, dense: Target, codec: TextCodec) -> dict[str, int]:
    """How many end by themselves, and how many begin and are as in float32."""
    lines = (ROOT / PROMPTS).read_text(encoding="utf-8").splitlines()
    prompts = [codec.encode_chat([{"role": "user", "content": line}]) for line in lines]
    stop = StopConfig(max_tokens=ANSWER_TOKENS)
    ours, theirs = (greedy(target, prompts, stop)[1] for target in (stored, dense))
    return {
        "prompts": len(lines),
        "tokens_float32": sum(map(len, theirs)),
        "ended_stored": sum(len(each) < ANSWER_TOKENS for each in ours),
        "ended_float32": sum(len(each) < ANSWER_TOKENS for each in theirs),
        f"first_{START}_tokens_alike": sum(
            a[:START] == b[:START] for a, b in zip(ours, theirs, strict=True)
        ),
        "alike": sum(a == b for a, b in zip(ours, theirs, strict=True)),
    }


def speeds(stored: StoredTarget, chosen: argparse.Namespace) -> dict[str, object]:
    return {
        "milliseconds": {n: by_kernel(stored, n, chosen.turns) for n in ROWS},
        "tokens_per_second_together": {n: together(stored, n) for n in REQUESTS},
    }


def distances(
    stored: Target, dense: Target, texts: Stretches, chosen: argparse.Namespace
) -> dict[str, dict[str, float]]:
    others: dict[str, LogProbs] = {"stored": partial(_log_probs, stored)}
    if chosen.llama_cpp:
        size = stored.spec.vocab_size
        others["llama.cpp"] = LlamaCpp(*chosen.llama_cpp, threads=chosen.threads, vocabulary=size)
    return distance(others, partial(_log_probs, dense), texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=5000)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-cpp", nargs=2, metavar=("GGUF", "BINARIES"))
    parser.add_argument("--only", choices=("speed", "prompts", "distance", "answers"))
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    files = hub.locate("demo")
    codec = None if files is None else TextCodec.from_directory(files.target)
    if files is None or codec is None:
        sys.exit("run dspark pull demo first")
    keep_compiled(hub.home() / "kernels")
    stored = load(files.target, as_stored=True)
    if not isinstance(stored, StoredTarget):
        sys.exit("the demo of this store holds numbers, or there are no kernels here")
    found: dict[str, object] = {}
    if chosen.only in (None, "speed"):
        found |= speeds(stored, chosen)
    if chosen.only in (None, "prompts"):
        found["prompt_tokens_per_second"] = prompt_speeds(stored, chosen)
    if chosen.only in (None, "distance", "answers"):
        dense = load(files.target, as_stored=False)
    if chosen.only in (None, "distance"):
        texts = stretches(codec, chosen.tokens)
        found["distance_from_float32"] = distances(stored, dense, texts, chosen)
    if chosen.only in (None, "answers"):
        found["answers"] = answers(stored, dense, codec)
    for name, value in found.items():
        print(name, value, flush=True)
    if chosen.json:
        settings = {"threads": chosen.threads, "turns": chosen.turns, "note": chosen.note}
        command = shlex.join(["python", "benchmarks/cpu_target.py", *sys.argv[1:]])
        write_document(chosen.json, {**found, "settings": settings, **provenance(command)})


@torch.inference_mode()
def prompt_speeds(target: Target, chosen: argparse.Namespace) -> dict[str, list[float]]:
    """Of each turn: a prompt of 512 tokens by us and, if given, by llama-bench."""
    ids = torch.arange(STRETCH) % 1000
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(max(3, chosen.turns // 4)):
        slot = target.open()
        started = time.perf_counter()
        target.prefill(slot, ids)
        found["dspark"].append(STRETCH / (time.perf_counter() - started))
        target.close(slot)
        if chosen.llama_cpp:
            found["llama_cpp"].append(_llama_bench(*chosen.llama_cpp, chosen.threads))
    return dict(found)


def _llama_bench(model: str, binaries: str, threads: int) -> float:
    command = [f"{binaries}/llama-bench", "-m", model, "-t", str(threads), "-o", "json"]
    command += ["-p", str(STRETCH), "-n", "0", "-r", "1"]
    told = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return float(json.loads(told.stdout)[0]["avg_ts"])


if __name__ == "__main__":
    main()
