"""Heads of every algorithm for one target, DSpark to MTP-1: trained alike, then compared.

python recipes/compare_drafters.py --answers answers.jsonl --out compare --steps 2000 \\
    --prompts gsm8k_test.jsonl humaneval.jsonl mt_bench.jsonl -- --lr 2e-3 --batch-size 4

All see the same answers, batches, anchors and learning rates; what follows `--` goes to every
`dspark graft`. Loss and its weights are each algorithm's own unless given there. The budget is the
trained parameters of the DSpark head, Markov tables included; the MLPs of the others are widened
until they have as many, within 2 %. Stopped at any moment, the same command goes on: a head that
is done is not trained again.
"""

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from dspark.bench.document import write_document
from dspark.config import Algorithm, GraftConfig, PairChoice, graft_config
from dspark.drafters.kinds import trained_parameters
from dspark.errors import DSparkError, InputError
from dspark.graft.head.shape import draft_config, fitting_intermediate_size
from dspark.hub import PAIRS
from dspark.targets.dense_files import read_config
from dspark_cli.loading import find_files
from dspark_cli.options import DEFAULT_PAIR

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
TOLERANCE = 0.02
DSPARK = [sys.executable, "-m", "dspark_cli"]
DEFAULTS = GraftConfig()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A head to train: its size, and the options of dspark graft that make it so."""

    algorithm: Algorithm
    parameters: int
    shape_options: tuple[str, ...]


def main() -> None:
    arguments, graft_options = parse()
    candidates = plan(arguments)
    for each in candidates:
        print(
            f"{each.algorithm:8}{each.parameters:12,} parameters {shlex.join(each.shape_options)}"
        )
    for each in candidates:
        train(each, arguments, graft_options)
    compare(candidates, arguments)


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Own arguments, and those after `--`."""
    given = [*sys.argv[1:], "--"]
    place = given.index("--")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default=DEFAULT_PAIR, help="alias or folder of the target")
    parser.add_argument("--answers", type=Path, required=True, help="as dspark graft keeps them")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="to compare on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the heads")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/compare-drafters-*")
    parser.add_argument("--steps", type=int, default=DEFAULTS.steps)
    parser.add_argument("--seed", type=int, default=DEFAULTS.seed)
    parser.add_argument("--block-size", type=int, default=DEFAULTS.block_size, help="not of MTP-1")
    parser.add_argument("--layers", type=int, default=1, help="of DSpark")
    parser.add_argument("--dflash-layers", type=int, default=2, help="in place of Markov tables")
    parser.add_argument("--kv-heads", type=int, help="default: the target's")
    parser.add_argument("--markov-rank", type=int, default=DEFAULTS.markov_rank)
    parser.add_argument("--limit", type=int, help="only the first prompts of each file")
    parser.add_argument("--max-tokens", type=int, default=128, help="of an answer compared")
    parser.add_argument("--timed", action="store_true", help="speed-ups too: one prompt at a time")
    return parser.parse_args(given[:place]), given[place + 1 : -1]


def plan(arguments: argparse.Namespace) -> list[Candidate]:
    target = read_config(find_files(target_choice(arguments)).target).get_text_config()
    budget = 0
    candidates = []
    for algorithm in get_args(Algorithm):
        settings = shape_settings(algorithm, arguments)
        config = graft_config(algorithm, **settings)
        if budget:  # DSpark comes first, as it is by default
            width = fitting_intermediate_size(target, config, budget)
            settings["intermediate_size"] = width
            config = graft_config(algorithm, **settings)
        parameters = trained_parameters(draft_config(target, config, 0))
        budget = budget or parameters
        candidates.append(Candidate(algorithm, parameters, as_options(settings)))
    check_budget({each.algorithm: each.parameters for each in candidates})
    return candidates


def target_choice(arguments: argparse.Namespace) -> PairChoice:
    base = arguments.base
    return PairChoice(base, draft="none") if base in PAIRS else PairChoice(base, target=base)


def shape_settings(algorithm: Algorithm, arguments: argparse.Namespace) -> dict[str, Any]:
    """Of GraftConfig; MTP-1 drafts one token, and only the block drafters may have more layers."""
    layers = {
        "dspark": arguments.layers,
        "dflash": arguments.dflash_layers,
        "dflash2": arguments.layers,
        "domino": arguments.layers,
    }
    settings: dict[str, Any] = {"num_kv_heads": arguments.kv_heads}
    if algorithm != "mtp":
        settings["block_size"] = arguments.block_size
    if algorithm in layers:
        settings["num_layers"] = layers[algorithm]
    if algorithm in ("dspark", "dflash2", "domino"):
        settings["markov_rank"] = arguments.markov_rank
    return settings


def as_options(settings: dict[str, Any]) -> tuple[str, ...]:
    given = {name: value for name, value in settings.items() if value is not None}
    return tuple(
        part
        for name, value in given.items()
        for part in (f"--{name.removeprefix('num_').replace('_', '-')}", str(value))
    )


def check_budget(parameters: dict[str, int]) -> None:
    smallest, largest = min(parameters.values()), max(parameters.values())
    if largest > smallest * (1 + TOLERANCE):
        raise InputError(
            f"the heads are not of one size: {parameters}",
            "Options after -- must not change a head's shape; --layers and such come before.",
        )


def train(each: Candidate, arguments: argparse.Namespace, graft_options: list[str]) -> None:
    """A head whose training ended is marked with its command and left alone."""
    folder = arguments.out / each.algorithm
    command = [
        *("graft", "--train", "--base", arguments.base, "--algo", each.algorithm),
        *("--name", f"compare-{each.algorithm}"),
        *("--data", str(arguments.answers), "--out", str(folder)),
        *("--steps", str(arguments.steps), "--seed", str(arguments.seed)),
        *("--no-measure", "--lean-head"),
        *(*each.shape_options, *graft_options),
    ]
    mark = folder / "trained.json"
    if mark.exists() and json.loads(mark.read_text())["command"] == command:
        print(f"{each.algorithm}: trained already", flush=True)
        return
    print(f"{each.algorithm}: {shlex.join(['dspark', *command])}", flush=True)
    subprocess.run([*DSPARK, *command], check=True)
    write_document(mark, {"command": command})


def compare(candidates: list[Candidate], arguments: argparse.Namespace) -> None:
    path = arguments.json or RESULTS / f"compare-drafters-{device_name()}.json"
    choice = target_choice(arguments)
    heads = ",".join(f"{each.algorithm}={arguments.out / each.algorithm}" for each in candidates)
    command = [
        *("bench", *(("--target", choice.target) if choice.target else (choice.pair,))),
        *("--drafters", heads, "--max-tokens", str(arguments.max_tokens), "--output", str(path)),
        *(part for prompts in arguments.prompts for part in ("--prompts", str(prompts))),
        *(("--limit", str(arguments.limit)) if arguments.limit else ()),
        *(() if arguments.timed else ("--tau-only",)),
    ]
    subprocess.run([*DSPARK, *command], check=True)
    document = json.loads(path.read_text("utf-8"))
    sizes = {each["name"]: each["parameters"] for each in document["drafters"]}
    check_budget(sizes)
    recipe = shlex.join(["python", "recipes/compare_drafters.py", *sys.argv[1:]])
    write_document(path, {**document, "command": recipe, "bench": shlex.join(["dspark", *command])})


def device_name() -> str:
    return "gpu" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    try:
        main()
    except DSparkError as error:
        sys.exit(f"{error.message}\n{error.hint}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except KeyboardInterrupt:
        sys.exit(130)
