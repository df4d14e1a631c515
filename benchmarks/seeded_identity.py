"""200 seeds: the same text with every drafter, schedule, number of requests and leader of rounds.

python -m benchmarks.seeded_identity --json benchmarks/results/seeded-identity-cpu.json

On the pairs of tests/conformance, whose heads are trained, so that drafts are kept and refused.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dspark.bench.document import provenance, write_document
from dspark.engine.loop import Engine
from dspark.engine.request import Request
from dspark.engine.schedule.policies import FullSchedule, SpsSchedule, ThresholdSchedule
from dspark.events import Finished, Round
from dspark.kvcache import caches
from dspark_kernels.backend import Backend
from tests.engine.pairs import TABLE, golden, request
from tests.engine.test_seed import FILTERS, PROMPTS, engines_of

Text = tuple[int, ...]


def asks_of(seeds: int, max_tokens: int) -> list[Request]:
    """Prompts and filters in turns, so that neighbours in a batch differ."""
    return [
        request(PROMPTS[seed % 3], max_tokens, seed=seed, **FILTERS[seed % len(FILTERS)])
        for seed in range(seeds)
    ]


def host_engines(variant: str) -> dict[str, Engine]:
    return engines_of(golden(variant), variant)


def device_engines(variant: str) -> dict[str, Engine]:
    """Rounds that the device leads, over pages, in plain torch on a CPU."""
    choose = caches.choose_backend
    caches.choose_backend = lambda device: Backend("triton", "pages without a card")
    try:
        session = golden(variant)
    finally:
        caches.choose_backend = choose
    target, head = session.engine.target, session.engine.drafter
    return {
        "device, none": Engine(target, None, FullSchedule()),
        "device, whole blocks": Engine(target, head, FullSchedule()),
        "device, threshold": Engine(target, head, ThresholdSchedule(0.4)),
        "device, auto": Engine(target, head, SpsSchedule(TABLE)),
    }


def decode(engine: Engine, asks: Sequence[Request], at_once: int) -> tuple[list[Text], int]:
    """Texts, and how many drafts were kept on the way."""
    texts: list[Text] = []
    num_accepted = 0
    for first in range(0, len(asks), at_once):
        done = {}
        for event in engine.run(asks[first : first + at_once]):
            if isinstance(event, Finished):
                done[event.request_id] = event.token_ids
            if isinstance(event, Round):
                num_accepted += event.accepted
        texts += [done[request_id] for request_id in sorted(done)]
    return texts, num_accepted


def compare(variant: str, seeds: int, max_tokens: int) -> list[dict[str, Any]]:
    asks = asks_of(seeds, max_tokens)
    engines = host_engines(variant)
    if variant != "eagle3":
        engines |= device_engines(variant)
    reference, _ = decode(engines["none"], asks, 1)
    rows = []
    for name, engine in engines.items():
        for at_once in (1, 3):
            texts, num_accepted = decode(engine, asks, at_once)
            differing = sum(a != b for a, b in zip(texts, reference, strict=True))
            row = {"pair": variant, "arm": name, "requests": at_once, "differing": differing}
            rows.append({**row, "texts": len(texts), "kept_drafts": num_accepted})
            print(rows[-1], flush=True)
    print(f"{variant}: {len(set(reference))} distinct texts of {len(reference)}", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--variants", nargs="+", default=["vanilla", "dflash", "eagle3"])
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    options = parser.parse_args()
    compared = partial(compare, seeds=options.seeds, max_tokens=options.max_tokens)
    with ProcessPoolExecutor(len(options.variants), get_context("spawn")) as pool:
        rows = [row for found in pool.map(compared, options.variants) for row in found]
    differing = sum(row["differing"] for row in rows)
    print(f"{differing} of {sum(row['texts'] for row in rows)} texts differ")
    if options.json:
        command = shlex.join(["python", "-m", "benchmarks.seeded_identity", *sys.argv[1:]])
        settings = {"seeds": options.seeds, "max_tokens": options.max_tokens, "filters": FILTERS}
        document = {"differing": differing, "rows": rows, "settings": settings}
        write_document(options.json, {**document, **provenance(command)})
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
