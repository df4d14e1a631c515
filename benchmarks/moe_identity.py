"""Greedy tokens of toys of gpt-oss and Qwen3-MoE: the same with drafts, schedules and company.

python benchmarks/moe_identity.py --tokens 5000

The toys are in the published layouts (experts in MXFP4; FP8 in blocks), with random weights, on the
CPU's kernels, and a store holds a third of the experts. Lookup drafts, which is right where a text
repeats itself.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.demo_identity import TABLE, decode, summed
from dspark.checkpoints.model_folder import ModelFolder
from dspark.checkpoints.moe_config import MoeConfig
from dspark.checkpoints.moe_target import read_moe
from dspark.config import SamplingConfig, StopConfig
from dspark.drafters.lookup import LookupDrafter
from dspark.engine.loop import Engine
from dspark.engine.request import Request
from dspark.engine.schedule.expert_prices import ExpertPrices
from dspark.engine.schedule.policies import FullSchedule, Scheduler, SpsSchedule
from dspark.models.expert_store import ExpertStore
from dspark.targets.moe import MoeTarget
from tests.moe_toy import YARN, write_oss, write_qwen

AT_ONCE = 6
WRITERS: dict[str, Callable[[Path], None]] = {
    "gpt-oss": partial(write_oss, rope_parameters=YARN),
    "qwen3-moe": partial(write_qwen, is_fp8=True),
}


def targets(path: Path) -> tuple[MoeTarget, MoeTarget]:
    """Without a store, and with one."""
    folder = ModelFolder(path / "packed")
    config = MoeConfig.from_json(folder.config)
    weights = read_moe(folder, config)
    layers = [block.experts for block in weights.blocks]
    store = ExpertStore(layers, max(1, len(layers) * len(layers[0]) // 3))
    return (
        MoeTarget(config, weights, rounds=True),
        MoeTarget(config, weights, rounds=True, store=store),
    )


def asks(batch: int, max_tokens: int) -> list[Request]:
    """Random prompts of 5 to 30 tokens."""
    generator = torch.Generator().manual_seed(batch)
    stop = StopConfig(max_tokens=max_tokens, ignore_stop_tokens=True)
    sizes = [5 + 5 * index for index in range(AT_ONCE)]
    prompts = [torch.randint(0, 80, (size,), generator=generator).tolist() for size in sizes]
    return [Request(tuple(each), SamplingConfig(), stop) for each in prompts]


def compare(pair: tuple[MoeTarget, MoeTarget], requests: list[Request]) -> dict[str, Any]:
    """Tokens that differ from plain decoding alone without a store, by arm."""
    alone, _ = decode(Engine(pair[0], None, FullSchedule()), requests, 1)
    row: dict[str, Any] = {"tokens": sum(map(len, alone)), "distinct": len(set(alone)), "arms": {}}
    priced = ExpertPrices(pair[1].expert_shape, LookupDrafter().block_size, 1e-4)
    table = replace(TABLE, expert_reads=(6.0, 15.0, 18.0))
    arms: dict[str, tuple[Scheduler, bool, int]] = {
        "plain, 6 at once": (FullSchedule(), False, AT_ONCE),
        "lookup, whole blocks, 1 at once": (FullSchedule(), True, 1),
        "lookup, whole blocks, 6 at once": (FullSchedule(), True, AT_ONCE),
        "lookup, by the price of experts, 6 at once": (SpsSchedule(table, priced), True, AT_ONCE),
    }
    for name, (scheduler, drafts, at_once) in arms.items():
        engine = Engine(pair[1], LookupDrafter() if drafts else None, scheduler)
        texts, kept = decode(engine, requests, at_once)
        pairs = [
            two for texts_ in zip(texts, alone, strict=True) for two in zip(*texts_, strict=True)
        ]
        row["arms"][name] = {"differing": sum(a != b for a, b in pairs), "kept": kept}
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", type=int, default=5_000, help="of each model")
    parser.add_argument("--max-tokens", type=int, default=320, help="of an answer")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, write in WRITERS.items():
        rows: list[dict[str, Any]] = []
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            write(Path(folder))
            pair = targets(Path(folder))
            while sum(row["tokens"] for row in rows) < chosen.tokens:
                rows.append(compare(pair, asks(len(rows), chosen.max_tokens)))
                print(name, len(rows), f"{time.perf_counter() - start:.0f} s", flush=True)
            store = pair[1].expert_store
            assert store is not None
            found[name] = summed(rows) | {"hits": store.hits, "misses": store.misses}
    print(json.dumps(found, indent=2))
    return 1 if any(each["differing"] for each in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
