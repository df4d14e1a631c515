"""What a step and a round would take by their bytes, nodes and gaps: a model, no measurement.

    python benchmarks/gpu_parts/time_model.py [--bandwidth 3.0e12] [--context 512]

Assumptions, for an H100; steps are trusted to 15 %, single kernels to 40 %:

- Memory streams at `streaming` of the bandwidth of copying while a kernel is in full swing.
- A product needs `fill` more to fill and drain; where its columns are split among programs, a node
  more adds the parts (`combine`). The splits are those that the code chooses.
- Small kernels move next to nothing and have fixed times: the gap to the node before (1.3 µs in a
  CUDA graph, as Hazy Research measured on an H100) and a chain of loads that wait for each other.
- Attention takes `attention` at short context, and beyond that its bytes at 80 % of the bandwidth.
- `rest` is what torch launches around the layers, and acceptance without filters.

The variants are the same code with fewer or closer nodes; none of them is built yet.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "benchmarks")]

from dspark_kernels.skinny_linear import Tiling  # noqa: E402
from gpu_parts.shapes import BLOCK_SIZE, ELEMENT, SHAPES, ModelShape  # noqa: E402

H100_BANDWIDTH = 3.0e12  # bytes a second, of a copy


@dataclass(frozen=True, slots=True)
class Nodes:
    """Microseconds of each kind of node; streaming is a share of the bandwidth.

    head_step: features and vocabulary of one drafted token, besides W2's bytes.
    """

    streaming: float = 0.95
    fill: float = 2.0
    combine: float = 2.3
    norm: float = 2.8
    rope: float = 3.2
    attention: float = 7.0
    attention_combine: float = 3.2
    rest: float = 110.0
    head_step: float = 17.7
    round_rest: float = 52.0


NOW = Nodes()
JOINED = replace(NOW, combine=0.0, attention_combine=0.0, norm=3.0, rope=3.4, rest=70.0)
DEPENDENT = replace(
    JOINED, fill=1.0, norm=1.8, rope=2.2, attention=4.5, rest=45.0, head_step=12.0, round_rest=35.0
)
PREFETCHED = replace(
    DEPENDENT, streaming=0.96, fill=0.5, norm=0.9, rope=1.2, attention=3.0, rest=40.0,
    head_step=6.0, round_rest=32.0,
)  # fmt: skip
VARIANTS = {
    "as it is": NOW,
    "no separate combines": JOINED,
    "and dependent launch": DEPENDENT,
    "and weights into the L2": PREFETCHED,
}


def num_splits(num_outputs: int, num_columns: int, *, gated: bool) -> int:
    rows = num_outputs // 2 if gated else num_outputs
    return Tiling.of(rows, num_columns, "dense", num_columns, ELEMENT).num_splits


def layer_nodes() -> int:
    """Two norms, RoPE and the write, attention, four products."""
    return 8


@dataclass(frozen=True, slots=True)
class Model:
    nodes: Nodes
    bandwidth: float = H100_BANDWIDTH

    def floor(self, num_bytes: float) -> float:
        """Microseconds."""
        return num_bytes / self.bandwidth * 1e6

    def product(self, num_outputs: int, num_columns: int, *, gated: bool = False) -> float:
        splits = num_splits(num_outputs, num_columns, gated=gated)
        streamed = self.floor(ELEMENT * num_outputs * num_columns) / self.nodes.streaming
        return streamed + self.nodes.fill + (self.nodes.combine if splits > 1 else 0.0)

    def layers(self, shape: ModelShape, num_layers: int, context: int) -> float:
        nodes = self.nodes
        one = sum(
            self.product(*size, gated=name == "gate+up")
            for name, size in shape.layer_matrices().items()
        )
        cache = self.floor(shape.cache_bytes(context, 1))
        one += 2 * nodes.norm + nodes.rope + nodes.attention_combine
        return num_layers * (one + max(nodes.attention, cache / 0.8 + 3.0))

    def step(self, shape: ModelShape, context: int) -> float:
        """A plain step, and a verification too."""
        head = self.product(shape.vocab_size, shape.hidden_size)
        return self.layers(shape, shape.num_layers, context) + head + self.nodes.rest

    def draft(self, shape: ModelShape, context: int) -> float:
        """Draft layers, output head, a step of the sequential head for each drafted token; then
        joined taps, and their keys and values in every draft layer."""
        nodes = self.nodes
        sequential = BLOCK_SIZE * (
            self.floor(shape.markov_bytes()) / nodes.streaming + nodes.head_step
        )
        joined = self.product(shape.hidden_size, shape.num_taps * shape.hidden_size)
        cached = self.product(2 * shape.num_kv_heads * shape.head_dim, shape.hidden_size)
        cached = shape.num_draft_layers * (cached + nodes.rope)
        layers = self.layers(shape, shape.num_draft_layers, context)
        head = self.product(shape.vocab_size, shape.hidden_size)
        return layers + head + sequential + joined + cached + nodes.round_rest

    def round(self, shape: ModelShape, context: int) -> float:
        return self.draft(shape, context) + self.step(shape, context)


def table(bandwidth: float, context: int) -> str:
    """Milliseconds, and times the floor, as Markdown."""
    lines = ["| | | " + " | ".join(VARIANTS) + " |", "|" + "---|" * (2 + len(VARIANTS))]
    for shape in SHAPES:
        floors = {"plain step": shape.step_bytes(context), "round": shape.round_bytes(context)}
        for name, num_bytes in floors.items():
            cells = []
            for nodes in VARIANTS.values():
                model = Model(nodes, bandwidth)
                micro = (model.step if name == "plain step" else model.round)(shape, context)
                over = micro / model.floor(num_bytes)
                cells.append(f"{micro / 1e3:.2f} ms = {over:.2f} x")
            lines.append(f"| {shape.name} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bandwidth", type=float, default=H100_BANDWIDTH, help="bytes a second")
    parser.add_argument("--context", type=int, default=512)
    options = parser.parse_args()
    print(table(options.bandwidth, options.context))
    return 0


if __name__ == "__main__":
    sys.exit(main())
