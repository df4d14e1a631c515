"""Ways of training one head, each with the same answers, steps and anchors.

    python recipes/compare_training.py --answers ANSWERS.jsonl --tap-cache FOLDER --json OUT.json

Taps are read from the cache, so that a run is its steps alone. Ways that OUT has already are not
run again: interrupted, the same command goes on. The figure is the expected accepted length at
temperature 1 on the held-out answers; only ways of one seed and budget compare.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from dspark.bench.document import provenance, write_document
from dspark.config import Algorithm, GraftConfig, PairChoice, graft_config
from dspark.drafters.kinds import build_head
from dspark.graft.data.answer_file import Answer, AnswerFile, split
from dspark.graft.head.bigram_init import Bigrams
from dspark.graft.head.init_from_target import start_from_target
from dspark.graft.head.shape import draft_config
from dspark.graft.target.frozen_target import FrozenTarget, load_frozen
from dspark.graft.train.precision import product_precision
from dspark.graft.train.trainer import Trainer, trainable
from dspark_cli.loading import find_files

SHAPE = {"block_size": 4, "num_layers": 2, "num_kv_heads": 9, "markov_rank": 24}
BUDGET = {"batch_size": 4, "anchors": 32, "length": 320, "mask_token_id": 5, "eval_prompts": 60}
DEMO = {  # as recipes/demo_head.sh
    "learning_rate": 2e-3,
    "markov_learning_share": 0.1,
    "position_decay": 2.0,
    "distillation_weight": 1.0,
    "loss_vocabulary": 500,
    "draft_vocabulary": 4096,
}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "as the demo's recipe": {},
    "published loss": {"distillation_weight": 0.0},
    "decay over 4": {"position_decay": 4.0},
    "D-PACE": {"position_weights": "dpace"},
    "published loss, D-PACE": {"distillation_weight": 0.0, "position_weights": "dpace"},
    "D-PACE, CE alone": {
        "position_weights": "dpace",
        "cross_entropy_weight": 1.0,
        "l1_weight": 0.0,
        "distillation_weight": 0.0,
    },
    "nla": {"loss": "nla"},
    "nla + distillation": {"loss": "nla", "distillation_weight": 1.0},
    "lk": {"loss": "lk"},
    "Muon": {"optimizer": "muon"},
    "Muon, half the rate": {"optimizer": "muon", "learning_rate": 1e-3},
    "average 0.99": {"average": 0.99},
    "128 anchors": {"anchors": 128},
    "tables at the whole rate": {"markov_learning_share": 1.0},
    "tables at 3 % of the rate": {"markov_learning_share": 0.03},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=360, help="answers, held-out ones included")
    parser.add_argument("--tap-cache", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--algo", default="dspark")
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    given = parser.parse_args()
    files = find_files(PairChoice("demo", draft="none"))
    answers = AnswerFile(given.answers).read()[: given.limit]
    done = json.loads(given.json.read_text())["ways"] if given.json.exists() else {}
    first = settings(given.algo, given.steps, WAYS[given.ways[0]])
    cpu = torch.device("cpu")
    target = load_frozen(
        files.target,
        device=cpu,
        dtype=torch.float32,
        memory_bytes=2**31,
        precision=first.precision,
    )
    shape = draft_config(target.config, first, 5)
    target.tap(shape.target_layer_ids)
    parts = split(answers, first.eval_prompts)
    sequences = [a.token_ids for a in trainable([*parts.train, *parts.held_out], first.length)]
    target.keep_on_disk(given.tap_cache, files.target, sequences, 0)
    target.keep_together(sequences)
    for way in given.ways:
        if way not in done:
            config = settings(given.algo, given.steps, WAYS[way])
            done[way] = trained(target, parts.train, parts.held_out, config)
            print(way, json.dumps(done[way]), flush=True)
            about = provenance(shlex.join(["python", "recipes/compare_training.py", *sys.argv[1:]]))
            write_document(given.json, {**about, "steps": given.steps, "ways": done})


def settings(algorithm: Algorithm, steps: int, way: Mapping[str, Any]) -> GraftConfig:
    precision = product_precision("auto", "cpu")
    chosen = {**SHAPE, **BUDGET, **DEMO, "precision": precision, "steps": steps, **way}
    return graft_config(algorithm, **chosen)


def trained(
    target: FrozenTarget, train: Sequence[Answer], held_out: Sequence[Answer], config: GraftConfig
) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    trainer = Trainer(build_head(draft_config(target.config, config, 5)), target, train, config)
    bigrams = Bigrams(target)
    for answer in trainer.answers[: 2000 if trainer.head.markov_head is not None else 0]:
        bigrams.add(answer)
    start_from_target(trainer.head, target, bigrams, torch.Generator().manual_seed(config.seed))
    started = perf_counter()
    for _ in trainer.steps():
        pass
    seconds = perf_counter() - started
    report = trainer.validate(held_out)
    last = replace(report, seconds=0.0)
    return {
        "tau": round(last.tau, 3),
        "acceptance": [round(rate, 3) for rate in last.acceptance_by_position],
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
