"""All matrices of a SmolLM2-135M-shaped step on a CPU against torch in float32, and passes by
operation.

python benchmarks/cpu_kernels.py --json benchmarks/results/cpu-kernels.json

Random Q4_1 weights, a bank of them for each layer, so that they come from memory as in a model. All
variants take turns; a figure is the sum over layers of each layer's quickest turn, rounding of rows
included, because the machine may be busy with other things: it is what the kernels need, not what a
user waits. The table of passes is of all threads, one request, and the demo's formats: layers in
Q4_1, output head in Q8_0.
"""

import argparse
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from cpu_pass_profile import pass_table, print_pass_table

from dspark.bench.document import provenance, write_document
from dspark_kernels import SkinnyLinear
from dspark_kernels.cpu.decoder_pass import Decoder, DecoderLayer, Projection
from dspark_kernels.cpu.matrix import multiply_op
from dspark_kernels.cpu.processor import variants
from dspark_kernels.cpu.rope_write import Heads
from dspark_kernels.cpu.rounded import empty_rounded
from dspark_kernels.cpu.runtime import Op, Program, Runtime
from dspark_kernels.cpu.stored_weight import StoredWeight, stored_weight

BLOCKS = {"q4_1": (20, 2), "q8_0": (34, 1)}  # bytes, and halves at their beginning
HIDDEN, INNER, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 576, 1536, 9, 3, 64
VOCABULARY, LAYERS = 49_152, 30
LAYER = ((HIDDEN, 960), (HIDDEN, HIDDEN), (HIDDEN, 2 * INNER), (INNER, HIDDEN))  # in, out
ROWS = (1, 2, 5, 8, 64)
SLOW, FEW = "generic", 8  # a variant that is not tried with more rows
PASS_ROWS, PASS_BEFORE = (1, 2, 3, 5, 8, 16), (200, 1000)  # positions in the cache before


def random_weight(width: int, outputs: int, kind: str = "q4_1") -> StoredWeight:
    size, halves = BLOCKS[kind]
    blocks = torch.randint(256, (outputs, width // 32, size), dtype=torch.uint8)
    scales = torch.randn(outputs, width // 32, halves) * 0.002
    blocks[..., : 2 * halves] = scales.half().view(torch.uint8)
    return stored_weight(kind, blocks.flatten(1))


class Timings:
    """The fastest of all turns, by operation and layer."""

    def __init__(self) -> None:
        self._best: dict[str, dict[int, float]] = defaultdict(dict)

    def run(self, name: str, part: int, work: Callable[[], object]) -> None:
        start = time.perf_counter()
        work()
        taken = time.perf_counter() - start
        self._best[name][part] = min(taken, self._best[name].get(part, taken))

    def milliseconds(self) -> dict[str, float]:
        return {name: 1e3 * sum(parts.values()) for name, parts in self._best.items()}


def layer_program(runtime: Runtime, weights: list[StoredWeight], rows: int) -> Callable[[], None]:
    ops = []
    for weight in weights:
        x, out = torch.randn(rows, weight.width), torch.empty(rows, weight.num_outputs)
        rounded = empty_rounded(rows, weight.width).data
        ops.append(Op("round_rows", 0, 1, (x, rounded, weight.width // 32)))
        ops.append(multiply_op(weight, None, rounded, out))
    program, step = Program(runtime, ops), torch.tensor([rows])
    return lambda: program(step)


def float_layers(threads: int) -> dict[int, list[Callable[[], None]]]:
    """Of each number of rows, the layers in torch."""
    shapes = [LAYER] * LAYERS + [((HIDDEN, VOCABULARY),)]
    linears = [[SkinnyLinear(torch.randn(n, k)) for k, n in layer] for layer in shapes]

    def work(layer: list[SkinnyLinear], inputs: list[torch.Tensor]) -> None:
        torch.set_num_threads(threads)
        for linear, x in zip(layer, inputs, strict=True):
            linear(x)

    made: dict[int, list[Callable[[], None]]] = {}
    for rows in ROWS:
        made[rows] = [
            partial(work, layer, [torch.randn(rows, k) for k, _ in shape])
            for layer, shape in zip(linears, shapes, strict=True)
        ]
    return made


def decoder(layers: list[list[StoredWeight]], head: StoredWeight) -> Decoder:
    heads = Heads(NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5)
    norm = torch.ones(HIDDEN)
    made = [
        DecoderLayer(
            norm,
            Projection((qkv,)),
            heads,
            Projection((o,)),
            norm,
            Projection((g,)),
            Projection((down,)),
        )
        for qkv, o, g, down in layers
    ]
    return Decoder(head, made, norm, 1e-5)


def read_all(weights: list[list[StoredWeight]]) -> list[Callable[[], object]]:
    """Sums of the same bytes by torch, for the memory's own speed."""
    words = [torch.cat([w.data for w in layer]) for layer in weights]
    views = [w[: w.numel() // 8 * 8].view(torch.int64) for w in words]
    return [partial(torch.sum, view) for view in views]


def measure(turns: int, threads: tuple[int, ...]) -> tuple[dict[str, float], float]:
    """Milliseconds by name, and megabytes of weights."""
    layers = [[random_weight(k, n) for k, n in LAYER] for _ in range(LAYERS)]
    head = random_weight(HIDDEN, VOCABULARY)
    banks = [*layers, [head]]
    jobs: list[tuple[str, list[Callable[[], object]]]] = []
    for count in threads:
        for variant in variants().values():
            runtime = Runtime(variant, count, None)
            for rows in ROWS:
                if variant.name == SLOW and rows > FEW:
                    continue
                name = f"{variant.name}, {count} threads, {rows} rows"
                jobs.append((name, [layer_program(runtime, bank, rows) for bank in banks]))
        for rows, work in float_layers(count).items():
            jobs.append((f"torch float32, {count} threads, {rows} rows", [*work]))
    jobs.append(("reading the codes", read_all(banks)))
    timings = Timings()
    for _ in range(turns):
        for name, parts in jobs:
            for index, part in enumerate(parts):
                timings.run(name, index, part)
    return timings.milliseconds(), sum(w.data.numel() for bank in banks for w in bank) / 1e6


def passes(turns: int, threads: int) -> dict[str, dict[str, float]]:
    layers = [[random_weight(k, n) for k, n in LAYER] for _ in range(LAYERS)]
    demo = decoder(layers, random_weight(HIDDEN, VOCABULARY, "q8_0"))
    fastest = next(iter(variants().values()))
    sizes = [(rows, before) for before in PASS_BEFORE for rows in PASS_ROWS]
    return pass_table(demo, fastest, threads, sizes, turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--pass-turns", type=int, default=100)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--note", default="", help="note on the machine's other load")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    table = passes(arguments.pass_turns, arguments.threads[-1])
    print_pass_table(table)
    times, megabytes = measure(arguments.turns, tuple(arguments.threads))
    for name, milliseconds in times.items():
        print(f"{name:50} {milliseconds:8.2f} ms")
    if arguments.json:
        document = {
            "milliseconds": {name: round(value, 3) for name, value in times.items()},
            "passes_milliseconds": table,
            "weights_megabytes": round(megabytes, 1),
            "settings": {
                "turns": arguments.turns,
                "pass_turns": arguments.pass_turns,
                "note": arguments.note,
            },
        }
        command = shlex.join(["python", "benchmarks/cpu_kernels.py", *sys.argv[1:]])
        write_document(arguments.json, {**document, **provenance(command)})


if __name__ == "__main__":
    main()
