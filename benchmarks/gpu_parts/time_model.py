"""What a step and a round would take by their bytes, nodes and gaps: a model, no measurement.

    python benchmarks/gpu_parts/time_model.py [--bandwidth 3.0e12] [--context 512]

Assumptions, for an H100; steps are trusted to 15 %, single kernels to 40 %:

- Memory streams at `streaming` of the bandwidth of copying while a kernel is in full swing.
- A product needs `fill` more to fill and drain. Where its columns are split among programs, either
  a node more adds the parts (`combine`), or the last program does: `last` for its ticket and for
  reading them. The splits are those that the code chooses.
- Small kernels move next to nothing and have fixed times: the gap to the node before (1.3 µs in a
  CUDA graph, as Hazy Research measured on an H100) and a chain of loads that wait for each other.
- Attention takes `attention` and `attention_sum` at short context, and beyond that its bytes at
  80 % of the bandwidth. Splits of 64 positions instead of 256 take 1.2 µs off it.
- Dependent launch takes the gap off a node: kernels are there before they may begin.
- Whatever lies between two products then takes only what is left of it while the second fetches
  weights into the L2: as many as the code touches, of which `overlap` arrive in that time; but at
  least `least`, for the signal from one kernel to the next.
- `rest` is what torch launches around the layers, and acceptance without filters. Until the last
  column neither that nor the sequential head starts early, and one program reads a whole row of
  logits for its likeliest token, which is half of `rest`.
- In the last column kernels of our own are around the layers, and nothing of torch: AROUND_STEP and
  AROUND_ROUND list them. Each is as long as a norm; the row of logits is read in parts by many
  programs, the last of which compares them (`row`). Of the sequential head's table, programs fetch
  early what they and the next ones read.

Nothing here has run on a GPU. What is built is the last column; the second is a card before sm_90,
or DSPARK_PDL=off.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "benchmarks")]

from dspark_kernels.dependent_launch import LINE  # noqa: E402
from dspark_kernels.sequential_head import AT_ONCE, BLOCK_TOKENS  # noqa: E402
from dspark_kernels.sequential_head_kernels import TILES_AHEAD  # noqa: E402
from dspark_kernels.skinny_linear import MOST_AT_ONCE, Tiling  # noqa: E402
from gpu_parts.shapes import BLOCK_SIZE, ELEMENT, SHAPES, ModelShape  # noqa: E402

H100_BANDWIDTH = 3.0e12  # bytes a second, of a copy
# small kernels besides the layers, of a plain step and what a round has more: the sequential head
# stands apart, and the first norm of a pass is that of its first layer
AROUND_STEP = ("plan", "final norm", "row", "race", "mass", "draw", "end")
AROUND_ROUND = ("final norm of the draft", "norm of joined taps", "last features")


@dataclass(frozen=True, slots=True)
class Nodes:
    """Microseconds of each kind of node; streaming and overlap are shares.

    head_step: features and vocabulary of one drafted token, besides W2's bytes. row: what the
    likeliest token of a row takes longer than a norm. is_ours: around the layers torch launches
    nothing.
    """

    streaming: float = 0.95
    fill: float = 2.0
    combine: float = 2.3
    last: float = 0.0
    norm: float = 2.8
    rope: float = 3.2
    attention: float = 7.0
    attention_sum: float = 3.2
    rest: float = 110.0
    head_step: float = 17.7
    round_rest: float = 52.0
    overlap: float = 0.0
    least: float = 0.5
    row: float = 2.0
    is_ours: bool = False


THIRTEEN = Nodes()
EIGHT = replace(THIRTEEN, combine=0.0, last=1.0, attention=5.8, attention_sum=1.5)
DEPENDENT = replace(EIGHT, fill=1.0, norm=1.8, rope=2.2, attention=4.5)
TOUCHING = replace(DEPENDENT, overlap=0.7)
OURS = replace(TOUCHING, is_ours=True, head_step=15.1)  # two gaps of 1.3 less
VARIANTS = {
    "13 nodes a layer": THIRTEEN,
    "8 nodes": EIGHT,
    "and dependent launch": DEPENDENT,
    "and weights into the L2": TOUCHING,
    "and nothing of torch": OURS,
}


def tiling_of(num_outputs: int, num_columns: int, *, gated: bool) -> Tiling:
    rows = num_outputs // 2 if gated else num_outputs
    return Tiling.of(rows, num_columns, "dense", num_columns, ELEMENT)


def layer_nodes() -> int:
    """Two norms, RoPE and the write, attention, four products."""
    return 8


def step_nodes(num_layers: int) -> int:
    """The layers, the output head, and what is around them."""
    return num_layers * layer_nodes() + 1 + len(AROUND_STEP)


def round_nodes(num_layers: int, num_draft_layers: int) -> int:
    """Those of a step and of the drafter's own layers and head; two kernels a drafted token; the
    joined taps, and of each draft layer their product and the write of keys and values."""
    drafted = num_draft_layers * layer_nodes() + 1 + 1 + 2 * BLOCK_SIZE
    appended = 1 + 2 * num_draft_layers
    return step_nodes(num_layers) + drafted + appended + len(AROUND_ROUND)


@dataclass(frozen=True, slots=True)
class Model:
    nodes: Nodes
    bandwidth: float = H100_BANDWIDTH

    def floor(self, num_bytes: float) -> float:
        """Microseconds."""
        return num_bytes / self.bandwidth * 1e6

    def product(
        self, num_outputs: int, num_columns: int, before: float = 0.0, *, gated: bool = False
    ) -> float:
        """A product and what lies between the one before and it, `before` microseconds."""
        nodes, tiling = self.nodes, tiling_of(num_outputs, num_columns, gated=gated)
        rows = num_outputs // 2 if gated else num_outputs
        lines = tiling.touched_lines(rows, ELEMENT * num_columns, gated=gated)
        programs = min(-(-rows // tiling.block_n) * tiling.num_splits, MOST_AT_ONCE)
        touched = lines * LINE * programs * tiling.block_n * (2 if gated else 1)
        gap = before + nodes.fill + (nodes.last if tiling.num_splits > 1 else 0.0)
        gap = max(gap - nodes.overlap * self.floor(touched), min(gap, nodes.least))
        streamed = self.floor(ELEMENT * num_outputs * num_columns) / nodes.streaming
        return streamed + gap + (nodes.combine if tiling.num_splits > 1 else 0.0)

    def layers(self, shape: ModelShape, num_layers: int, context: int) -> float:
        nodes, sizes = self.nodes, shape.layer_matrices()
        cache = self.floor(shape.cache_bytes(context, 1))
        attention = max(nodes.attention, cache / 0.8 + 3.0) + nodes.attention_sum
        one = self.product(*sizes["qkv"], nodes.norm)
        one += self.product(*sizes["o"], nodes.rope + attention)
        one += self.product(*sizes["gate+up"], nodes.norm, gated=True)
        one += self.product(*sizes["down"])
        return num_layers * one

    def step(self, shape: ModelShape, context: int) -> float:
        """A plain step, and a verification too."""
        head = self.product(shape.vocab_size, shape.hidden_size)
        return self.layers(shape, shape.num_layers, context) + head + self.around_step()

    def around_step(self) -> float:
        nodes = self.nodes
        return len(AROUND_STEP) * nodes.norm + nodes.row if nodes.is_ours else nodes.rest

    def around_round(self, shape: ModelShape) -> float:
        """What a round has besides that: small kernels, and the product of all that the sequential
        head reads of the hidden states, one output here."""
        nodes = self.nodes
        if not nodes.is_ours:
            return nodes.round_rest
        return len(AROUND_ROUND) * nodes.norm + self.product(1, shape.hidden_size)

    def head_step(self, shape: ModelShape) -> float:
        """Features and vocabulary of a drafted token."""
        nodes = self.nodes
        streamed = self.floor(shape.markov_bytes()) / nodes.streaming
        if not nodes.is_ours:
            return streamed + nodes.head_step
        rank = shape.markov_bytes() // (ELEMENT * shape.vocab_size)
        touched = AT_ONCE * (1 + TILES_AHEAD) * BLOCK_TOKENS * rank * ELEMENT
        return streamed + nodes.head_step - nodes.overlap * self.floor(touched)

    def draft(self, shape: ModelShape, context: int) -> float:
        """Draft layers, output head, a step of the sequential head for each drafted token; then
        joined taps, and their keys and values in every draft layer."""
        nodes = self.nodes
        sequential = BLOCK_SIZE * self.head_step(shape)
        joined = self.product(shape.hidden_size, shape.num_taps * shape.hidden_size)
        cached = self.product(2 * shape.num_kv_heads * shape.head_dim, shape.hidden_size)
        cached = shape.num_draft_layers * (cached + nodes.rope)
        layers = self.layers(shape, shape.num_draft_layers, context)
        head = self.product(shape.vocab_size, shape.hidden_size)
        return layers + head + sequential + joined + cached + self.around_round(shape)

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
