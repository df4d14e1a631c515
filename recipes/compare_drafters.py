"""Heads of every algorithm for one target, DSpark to MTP-1: trained alike, then compared.

python recipes/compare_drafters.py --answers answers.jsonl --out compare --steps 2000 \\
    --prompts gsm8k_test.jsonl humaneval.jsonl mt_bench.jsonl -- --lr 2e-3 --batch-size 4

All see the same answers, batches and anchors; what follows `--` goes to every `dspark graft`. Loss
and its weights are each algorithm's own unless given there, and of the learning rates `--rates`
each takes the one with the longer accepted length on the held-out answers, after --trial-steps of
their own where these are fewer. Lookup, which has no head, is compared too.

--shapes equal-size: the budget is the trained parameters of the DSpark head, Markov tables
included; the MLPs of the others are widened until they have as many, within 2 %. --shapes paper:
five layers for the drafters of blocks, one for those of tokens, blocks of seven, the target's own
width, tables of rank --markov-rank. --shapes equal-time: the target's width, and of 1, 2, 3 and 5
layers, or for Eagle3 of as many tokens a block, the most with which a block is drafted in no more
than the seconds of a DSpark head of --layers, measured here untrained.

Stopped at any moment, the same command goes on: a head that is done is not trained again, one
under way goes on from its checkpoint.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from time_drafts import draft_seconds

from dspark.bench.document import write_document
from dspark.checkpoints.head_config import HeadConfig
from dspark.config import (
    DEFAULT_PAIR,
    Algorithm,
    GraftConfig,
    PairChoice,
    graft_config,
)
from dspark.drafters.kinds import trained_parameters
from dspark.errors import DSparkError, InputError
from dspark.graft.head.shape import draft_config, fitting_intermediate_size
from dspark.hub import PAIRS
from dspark.targets.dense_files import read_config
from dspark_cli.loading import find_files

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
TOLERANCE = 0.02
TIME_TOLERANCE = 0.05
LAYERS = (1, 2, 3, 5)
POLL_SECONDS = 0.5
PAPER_BLOCK, PAPER_LAYERS = 7, 5  # of DSpark's comparison; the rivals since in DFlash's shape
DSPARK = [sys.executable, "-m", "dspark_cli"]
DEFAULTS = GraftConfig()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A head to train: its size, and the options of dspark graft that make it so."""

    algorithm: Algorithm
    parameters: int
    shape_options: tuple[str, ...]
    tapped: str
    draft_seconds: float | None = None  # of a block, untrained


def main() -> None:
    arguments, graft_options = parse()
    candidates = plan(arguments)
    for each in candidates:
        print(
            f"{each.algorithm:8}{each.parameters:12,} parameters {shlex.join(each.shape_options)}"
        )
    heads = {each.algorithm: best_of(each, arguments, graft_options) for each in candidates}
    compare(candidates, heads, arguments)


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
    parser.add_argument("--trial-steps", type=int, help="with each rate; default: all of them")
    parser.add_argument("--rates", type=float, nargs="+", default=[6e-4, 2e-3], help="of learning")
    parser.add_argument(
        "--shapes", choices=("equal-size", "paper", "equal-time"), default="equal-size"
    )
    parser.add_argument("--block-size", type=int, default=DEFAULTS.block_size, help="not of MTP-1")
    parser.add_argument("--layers", type=int, default=1, help="of DSpark")
    parser.add_argument("--dflash-layers", type=int, default=2, help="in place of Markov tables")
    parser.add_argument("--kv-heads", type=int, help="default: the target's")
    parser.add_argument("--markov-rank", type=int, default=DEFAULTS.markov_rank)
    parser.add_argument("--draft-vocabulary", type=int, default=0, help="as of dspark graft")
    parser.add_argument("--limit", type=int, help="only the first prompts of each file")
    parser.add_argument("--max-tokens", type=int, default=128, help="of an answer compared")
    parser.add_argument("--tap-cache", type=Path, help="folder of one tap cache a set of layers")
    parser.add_argument("--timed", action="store_true", help="speed-ups too: one prompt at a time")
    return parser.parse_args(given[:place]), given[place + 1 : -1]


def plan(arguments: argparse.Namespace) -> list[Candidate]:
    if arguments.shapes == "paper":
        return [candidate(a, paper_shape(a, arguments), arguments) for a in get_args(Algorithm)]
    if arguments.shapes == "equal-time":
        return kept_plan(arguments)
    target = read_config(find_files(target_choice(arguments)).target).get_text_config()
    budget = 0
    candidates = []
    for algorithm in get_args(Algorithm):
        settings = shape_settings(algorithm, arguments)
        if budget:  # DSpark comes first, as it is by default
            config = graft_config(algorithm, **settings)
            settings["intermediate_size"] = fitting_intermediate_size(target, config, budget)
        candidates.append(candidate(algorithm, settings, arguments))
        budget = budget or candidates[0].parameters
    check_budget({each.algorithm: each.parameters for each in candidates})
    return candidates


def candidate(
    algorithm: Algorithm, shape: dict[str, Any], arguments: argparse.Namespace
) -> Candidate:
    target = read_config(find_files(target_choice(arguments)).target).get_text_config()
    config = draft_config(target, graft_config(algorithm, **shape), 0)
    return Candidate(algorithm, trained_parameters(config), as_options(shape), tapped(config))


def tapped(config: HeadConfig) -> str:
    return "-".join(map(str, config.target_layer_ids))


def kept_plan(arguments: argparse.Namespace) -> list[Candidate]:
    """What was measured first holds when the command goes on."""
    path: Path = arguments.out / "plan.json"
    if not path.exists():
        measured = {str(each.algorithm): asdict(each) for each in of_equal_time(arguments)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_document(path, measured)
    stored = json.loads(path.read_text("utf-8"))
    return [
        Candidate(**{**each, "shape_options": tuple(each["shape_options"])})
        for each in stored.values()
    ]


def of_equal_time(arguments: argparse.Namespace) -> list[Candidate]:
    """Of each algorithm the largest shape whose block takes no longer than DSpark's to draft."""
    limit, found = 0.0, []
    for algorithm in get_args(Algorithm):
        best: Candidate | None = None
        for shape in rising_shapes(algorithm, arguments) if limit else ({},):
            shape = {**shape_settings(algorithm, arguments), **shape}
            each = candidate(algorithm, shape, arguments)
            each = replace(each, draft_seconds=seconds_to_draft(algorithm, shape, arguments))
            if best is None or (each.draft_seconds or 0.0) <= limit * (1 + TIME_TOLERANCE):
                best = each
        assert best is not None and best.draft_seconds is not None
        limit = limit or best.draft_seconds
        found.append(best)
    return found


def rising_shapes(algorithm: Algorithm, arguments: argparse.Namespace) -> list[dict[str, int]]:
    """By what an algorithm's work in a round grows: its layers, or the tokens it drafts in turn."""
    if algorithm == "eagle3":
        return [{"block_size": size + 1} for size in range(arguments.block_size)]
    if algorithm == "mtp":
        return [{}]
    return [{"num_layers": depth} for depth in LAYERS]


def seconds_to_draft(
    algorithm: Algorithm, shape: dict[str, Any], arguments: argparse.Namespace
) -> float:
    files = find_files(target_choice(arguments))
    target = read_config(files.target).get_text_config()
    config = draft_config(target, graft_config(algorithm, **shape), 1)
    return draft_seconds(files, config, arguments.draft_vocabulary, arguments.seed)


def best_of(each: Candidate, arguments: argparse.Namespace, graft_options: list[str]) -> Path:
    """The folder of the head trained with the better rate."""
    ways = (arguments, graft_options)
    steps = trial_steps(arguments)
    tried = {rate: train(each, rate, steps, *ways) for rate in arguments.rates}
    better = max(tried, key=lambda rate: held_out_tau(tried[rate]))
    return train(each, better, arguments.steps, *ways)


def trial_steps(arguments: argparse.Namespace) -> int:
    return int(min(arguments.trial_steps or arguments.steps, arguments.steps))


def head_folder(
    algorithm: Algorithm, rate: float, steps: int, arguments: argparse.Namespace
) -> Path:
    folder: Path = arguments.out / f"{algorithm}-{rate:g}-{steps}"
    return folder


def run_until_judged(command: list[str], folder: Path, steps: int) -> None:
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if any(record["step"] >= steps for record in held_out(folder)):
                process.terminate()
                return
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def held_out_tau(folder: Path) -> float:
    return float(held_out(folder)[-1]["tau"])


def held_out(folder: Path) -> list[dict[str, Any]]:
    """The whole records of the kind in the training's metrics."""
    path = folder / "training" / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines if '"held_out"' in line]


def target_choice(arguments: argparse.Namespace) -> PairChoice:
    base = arguments.base
    return PairChoice(base, draft="none") if base in PAIRS else PairChoice(base, target=base)


def paper_shape(algorithm: Algorithm, arguments: argparse.Namespace) -> dict[str, Any]:
    paper = {"block_size": PAPER_BLOCK, "num_layers": PAPER_LAYERS, "num_kv_heads": None}
    own = shape_settings(algorithm, arguments)
    return {name: paper.get(name, value) for name, value in own.items()}


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


def train(
    each: Candidate,
    rate: float,
    steps: int,
    arguments: argparse.Namespace,
    graft_options: list[str],
) -> Path:
    """The head's folder. A head whose training ended is marked with its command and left alone. A
    trial ends with its training: nobody reads what judging says of it."""
    folder = head_folder(each.algorithm, rate, steps, arguments)
    command = [
        *("graft", "--train", "--base", arguments.base, "--algo", each.algorithm),
        *("--name", f"compare-{arguments.out.name}-{folder.name}", "--lr", f"{rate:g}"),
        *("--data", str(arguments.answers), "--out", str(folder)),
        *("--steps", str(steps), "--seed", str(arguments.seed)),
        *("--no-measure", "--lean-head"),
        *(*each.shape_options, *graft_options),
        *(("--draft-vocabulary", str(size)) if (size := arguments.draft_vocabulary) else ()),
        *(("--tap-cache", str(cache / each.tapped)) if (cache := arguments.tap_cache) else ()),
    ]
    mark = folder / "trained.json"
    if mark.exists():
        if json.loads(mark.read_text())["command"] != command:
            raise InputError(
                f"{folder} holds a head that was trained with other options",
                "Give another --out, or delete that folder.",
            )
        print(f"{folder.name}: trained already", flush=True)
        return folder
    print(f"{each.algorithm}: {shlex.join(['dspark', *command])}", flush=True)
    if steps < arguments.steps:
        run_until_judged([*DSPARK, *command], folder, steps)
    else:
        subprocess.run([*DSPARK, *command], check=True)
    write_document(mark, {"command": command})
    return folder


def compare(
    candidates: list[Candidate], folders: dict[Algorithm, Path], arguments: argparse.Namespace
) -> None:
    path = arguments.json or RESULTS / f"compare-drafters-{device_name()}.json"
    choice = target_choice(arguments)
    heads = ",".join(["lookup=lookup", *(f"{name}={folder}" for name, folder in folders.items())])
    command = [
        *("bench", *(("--target", choice.target) if choice.target else (choice.pair,))),
        *("--drafters", heads, "--max-tokens", str(arguments.max_tokens), "--output", str(path)),
        *(part for prompts in arguments.prompts for part in ("--prompts", str(prompts))),
        *(("--limit", str(arguments.limit)) if arguments.limit else ()),
        *(() if arguments.timed else ("--tau-only",)),
    ]
    subprocess.run([*DSPARK, *command], check=True)
    document = json.loads(path.read_text("utf-8"))
    if arguments.shapes == "equal-size":
        trained = [each for each in document["drafters"] if each["name"] in folders]
        check_budget({each["name"]: each["parameters"] for each in trained})
    recipe = shlex.join(["python", "recipes/compare_drafters.py", *sys.argv[1:]])
    trial = trial_steps(arguments)
    chosen = {
        each.algorithm: {
            "options": each.shape_options,
            "parameters": each.parameters,
            "draft_seconds_untrained": each.draft_seconds,
            "steps": arguments.steps,
            "held_out_curve": [
                {name: record[name] for name in ("step", "tau", "acceptance_by_position")}
                for record in held_out(folders[each.algorithm])
            ],
            "held_out_tau_by_rate": {
                f"{rate:g}": held_out_tau(head_folder(each.algorithm, rate, trial, arguments))
                for rate in arguments.rates
            },
        }
        for each in candidates
    }
    made = {"command": recipe, "bench": shlex.join(["dspark", *command]), "heads": chosen}
    write_document(path, {**document, "shapes": arguments.shapes, **made})


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
