"""The halves of the engine's rounds on a pretended card: what they launch and compile, as JSON.

    python -m tests.kernels.pretended.rounds --card 90 golden:vanilla:bfloat16 4b:int8 ...

A golden pair by name and dtype, or random weights in a model's shape by the format of its matrices;
behind either, the format of keys and values.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
import triton

from benchmarks.gpu import ROOT  # which also makes gpu_parts known
from dspark.checkpoints.heads import read_any_config
from dspark.config import EngineConfig, KVFormat
from dspark.drafters.lookup import LookupDrafter
from dspark.engine.rounds.captured_host import CapturedHostRounds
from dspark.engine.rounds.device import DeviceRounds
from dspark.engine.rounds.device_batch import Plan
from dspark.engine.schedule.policies import FullSchedule, ThresholdSchedule
from dspark.engine.session import load_drafter
from dspark.targets.dense_files import load_dense, read_config
from tests.kernels.pretended.card import PretendedCard, capturing, listed_launches

META = torch.device("meta")
LANES = (1, 2, 4, 8)
PAGES = (2, 32)


def golden_pair(variant: str, dtype: str, kv: KVFormat = "auto") -> tuple[Any, Any]:
    folder = ROOT / "tests" / "conformance" / variant
    taps = read_any_config(folder / "draft").target_layer_ids
    target = load_dense(
        folder / "target", read_config(folder / "target"), tap_layers=taps, device=META,
        dtype=getattr(torch, dtype), kv=kv,
    )  # fmt: skip
    # whether the head's tables are the target's: `meta` cannot compare
    with patch.object(torch, "equal", lambda *_: True):
        return target, load_drafter(folder / "draft", target)


def random_pair(size: str, num_layers: int, kind: str, kv: KVFormat = "auto") -> tuple[Any, Any]:
    from gpu_parts.models import random_drafter, random_target
    from gpu_parts.setting import Setting
    from gpu_parts.shapes import SHAPES

    (shape,) = [each for each in SHAPES if each.name == f"Qwen3-{size.upper()}"]
    if num_layers:
        shape = replace(shape, num_layers=num_layers, num_taps=1, num_draft_layers=1)
    setting = Setting(META, is_tiny=False, deadline=0.0)
    target = random_target(shape, setting, kind, kv)
    # a smaller copy of the head is made only of a dense one
    weights = kind if kind in ("int8", "fp8") else "auto"
    return target, random_drafter(shape, target, setting, weights, kv)


@torch.inference_mode()
def run_halves(
    card: PretendedCard, target: Any, drafter: Any, *, of_one: bool
) -> dict[str, dict[str, Any]]:
    """Nodes of a plain step and of a round of one request. of_one: nothing else is compiled."""
    config = EngineConfig(max_requests=8)
    rounds = DeviceRounds(target, target.cache, drafter, ThresholdSchedule(0.5), config)
    nodes: dict[str, dict[str, Any]] = {}
    for num_lanes in LANES[: 1 if of_one else None]:
        lanes = rounds._lanes_of(num_lanes)
        for count in (0, drafter.block_size) if of_one else (0, 1, drafter.block_size):
            for num_pages in PAGES[: 1 if of_one else None]:
                calls = rounds._calls_of(lanes, Plan(count, num_pages))
                draft, finish = nodes_of(card, calls.draft), nodes_of(card, calls.finish)
                if num_lanes == 1 and count != 1:
                    name = "round" if count else "plain step"
                    nodes[name] = {"draft": draft, "finish": finish}
    if not of_one:
        prefill(target, drafter)
    return nodes


@torch.inference_mode()
def run_passes(card: PretendedCard, target: Any, *, of_one: bool) -> dict[str, int]:
    """Nodes of a captured pass of host-led rounds: one request, a whole block."""
    rounds = CapturedHostRounds(
        target, target.cache, LookupDrafter(), FullSchedule(), EngineConfig(max_requests=8)
    )
    passes, block = rounds._passes, 1 + LookupDrafter().block_size
    for num_lanes in LANES[: 1 if of_one else None]:
        for size in (block,) if of_one else (1, block):
            for num_pages in PAGES[: 1 if of_one else None]:
                found = nodes_of(card, passes._pass(num_lanes, size, num_pages)._run)
                if num_lanes == 1:
                    nodes = found
    return nodes


def prefill(target: Any, drafter: Any) -> None:
    """A short prompt, of as many rows as kernels take, and one that torch's products take."""
    for size in (9, 100):
        slot, draft_slot = target.open(), drafter.open()
        ids = torch.zeros(size, dtype=torch.int64, device=META)
        taps = target.prefill(slot, ids).taps
        drafter.extend([draft_slot], [ids], [taps])


def nodes_of(card: PretendedCard, half: Any) -> dict[str, int]:
    half()  # as before every capture: what is made once is made here
    begin = len(card.launches)
    with capturing() as capture:
        half()
    kernels = Counter(launch.kernel for launch in card.launches[begin:])
    return dict(kernels + capture.operations)


def report(card: PretendedCard, nodes: dict[str, Any]) -> dict[str, Any]:
    usages = card.usages()
    spills: dict[str, int] = {}
    for usage in usages:
        if usage.stack:
            spills[usage.name] = max(usage.stack, spills.get(usage.name, 0))
    unspilled = [replace(usage, stack=0) for usage in usages]
    return {
        "triton": triton.__version__,
        "variants": len(usages),
        "spills": spills,  # bytes a thread
        "beyond": [f"{usage.name}: {each}" for usage in unspilled for each in usage.breaches()],
        "unlisted": sorted(str(launch) for launch in {*card.launches} - listed_launches()),
        "nodes": nodes,
        "waiting": card.waiting(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pairs", nargs="+")
    parser.add_argument("--card", type=int, default=90)
    parser.add_argument("--of-one", action="store_true", help="only one request, whole blocks")
    parser.add_argument("--host-led", action="store_true", help="passes of rounds led by the host")
    parser.add_argument("--layers", type=int, default=0, help="of a random target; 0: its own")
    options = parser.parse_args()
    card, nodes = PretendedCard(options.card), {}
    with card.active():
        for name in options.pairs:
            first, *rest = name.split(":")
            is_golden = first == "golden"
            pair = golden_pair(*rest) if is_golden else random_pair(first, options.layers, *rest)
            if options.host_led:
                nodes[name] = {"pass": run_passes(card, pair[0], of_one=options.of_one)}
            else:
                nodes[name] = run_halves(card, *pair, of_one=options.of_one)
        json.dump(report(card, nodes), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
