"""A SIMULATION, no measurement: how the verified drafts per request fall as the load grows.

python benchmarks/budget_simulation.py --json benchmarks/results/budget-simulation.json

With the paper's accepted lengths on Qwen3-4B and an SPS curve: a stored one of `dspark profile`
(--sps FILE), or that of a roofline: a card which reads weights and caches at 4.3 TB/s and
multiplies at 600 TFLOP/s. The paper's figure falls from about 6 verified tokens at low load to
about 4 at 200 requests.
"""

import argparse
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from dspark.bench.document import provenance, write_document
from dspark.bench.simulation import PAPER_TAU, simulate
from dspark.engine.schedule.sps_profile import CONTEXT_TOKENS, SpsCurve, SpsTable
from dspark_cli.output.text_plot import text_plot

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 200)
# Qwen3-8B in bf16 on an H200, 4,096 tokens of context: bytes that a pass reads, and operations
WEIGHT_BYTES, DRAFT_BYTES, BANDWIDTH = 15.1e9, 3.9e9, 4.3e12
CACHE_BYTES, DRAFT_CACHE_BYTES = 4096 * 147e3, 4096 * 20e3  # of a request
OPERATIONS, DRAFT_OPERATIONS, RATE = 15.1e9, 7 * 3.2e9, 600e12  # of a row, of a block
AROUND = 6e-5  # seconds of every pass


def card_table() -> SpsTable:
    """Weights and caches are read, rows are multiplied, whichever takes longer."""
    groups = (1, 4, 16, 64, 200)
    curves = [
        SpsCurve(n, CONTEXT_TOKENS, rows, tuple(_pass(b, n) for b in rows), _draft(n))
        for n in groups
        for rows in [tuple(n * k for k in (1, 2, 3, 4, 6, 8))]
    ]
    first, draft = curves[0], tuple(map(_draft, groups))
    return SpsTable(first.rows, first.verify_seconds, groups, draft, curves=tuple(curves[1:]))


def _pass(rows: int, requests: int) -> float:
    read = (WEIGHT_BYTES + requests * CACHE_BYTES) / BANDWIDTH
    return AROUND + max(read, rows * OPERATIONS / RATE)


def _draft(requests: int) -> float:
    read = (DRAFT_BYTES + requests * DRAFT_CACHE_BYTES) / BANDWIDTH
    return AROUND + max(read, requests * DRAFT_OPERATIONS / RATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sps", type=Path, help="a table of the store's folder sps")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    table = card_table() if options.sps is None else SpsTable.load(options.sps)
    if table is None:
        raise SystemExit(f"{options.sps} holds no table")
    points = simulate(table, COUNTS, options.rounds)
    document = {
        "kind": "simulation",
        "acceptance": PAPER_TAU,
        "curve": asdict(table),
        "points": [asdict(point) for point in points],
        **provenance(shlex.join(["python", *sys.argv])),
    }
    curves = {
        arm: [(p.requests, p.verified) for p in points if p.arm == arm]
        for arm in ("scheduler", "async scheduler")
    }
    print("\n".join(text_plot(curves, "requests", "SIMULATED drafts verified per request")))
    for count in COUNTS:
        at = {p.arm: p for p in points if p.requests == count}
        best = max(p.total for arm, p in at.items() if arm == "plain" or arm.startswith("fixed"))
        print(
            f"{count:4} requests: verified {at['scheduler'].verified:.2f}, "
            f"{at['scheduler'].total / at['plain'].total:.2f} of plain, "
            f"{at['scheduler'].total / best:.3f} of the best fixed length"
        )
    if options.json:
        write_document(options.json, document)


if __name__ == "__main__":
    main()
