"""What a layer of one launch would take, beside the chain of kernels: a model, no measurement.

    python benchmarks/gpu_parts/persistent_model.py [--bandwidth 3.0e12] [--context 512]

As time_model.py, whose assumptions hold here too, but a timeline: memory streams whatever was asked
for, in order, and stands still where nothing is. More assumptions:

- A meeting of all programs takes `meeting`: two trips to the L2 and the wait for the last one.
- Phases without weights take what their kernels take, less the signal from kernel to kernel. The
  norms are every program's own.
- Weights that are in the L2 already are read from there at `L2_BANDWIDTH`.
- What the code touches early has room in the L2: up to 25 MB of a product, of two behind attention.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "benchmarks")]

from dspark_kernels.dependent_launch import LINE  # noqa: E402
from dspark_kernels.persistent_layer_call import product_constants  # noqa: E402
from gpu_parts.shapes import ELEMENT, SHAPES, ModelShape  # noqa: E402
from gpu_parts.time_model import H100_BANDWIDTH, OURS, Model, tiling_of  # noqa: E402

MULTIPROCESSORS = 132
L2_BANDWIDTH = 5.5e12
MEETINGS = (0.7, 1.3)  # microseconds
NAMES = {"qkv": "QKV", "o": "OUTPUT", "gate+up": "GATE_UP", "down": "DOWN"}


@dataclass(slots=True)
class Timeline:
    """Microseconds. streamed: when memory has given all that was asked for until now."""

    shape: ModelShape
    bandwidth: float
    meeting: float
    now: float = 0.0
    streamed: float = 0.0

    def ask(self, num_bytes: float) -> None:
        rate = OURS.streaming * self.bandwidth
        self.streamed = max(self.streamed, self.now) + num_bytes / rate * 1e6

    def touched(self, name: str) -> float:
        """Bytes of a product that are asked for before it begins."""
        num_rows, num_columns = self.shape.layer_matrices()[name]
        is_gated = name == "gate+up"
        outputs = num_rows // 2 if is_gated else num_rows
        tiling = tiling_of(num_rows, num_columns, gated=is_gated)
        key = NAMES[name]
        sizes = product_constants(key, outputs, ELEMENT * num_columns, tiling, MULTIPROCESSORS)
        rows = tiling.block_n * (2 if is_gated else 1) * MULTIPROCESSORS
        of_split = -(-ELEMENT * num_columns // tiling.num_splits)  # of a row
        at_once = rows * min(sizes[f"{key}_LINES"] * LINE, of_split)
        return min(sizes[f"{key}_AHEAD"] * at_once, ELEMENT * num_rows * num_columns)

    def multiply(self, name: str, following: str = "") -> None:
        """A product whose touched weights have been asked for; at its last item programs ask for
        those of the following one."""
        num_rows, num_columns = self.shape.layer_matrices()[name]
        size = ELEMENT * num_rows * num_columns
        self.ask(size - self.touched(name))
        end = max(self.streamed, self.now + size / L2_BANDWIDTH * 1e6)
        if following:
            self.ask(self.touched(following))
        splits = tiling_of(num_rows, num_columns, gated=name == "gate+up").num_splits
        self.now = end + OURS.fill + (OURS.last if splits > 1 else 0.0)

    def layer(self, context: int) -> None:
        """As persistent_layer_kernel.py."""
        cache = self.shape.cache_bytes(context, 1) / self.bandwidth * 1e6
        attention = max(OURS.attention, cache / 0.8 + 3.0) - OURS.least + OURS.attention_sum
        norm, rope = OURS.norm - OURS.least, OURS.rope - OURS.least
        self.now += norm
        self.multiply("qkv", "o")
        self.now += self.meeting + rope
        self.ask(self.touched("gate+up"))
        self.now += self.meeting + attention + self.meeting
        self.multiply("o")
        self.now += self.meeting + norm
        self.multiply("gate+up", "down")
        self.now += self.meeting
        self.multiply("down", "qkv")
        self.now += OURS.least


def layer_time(shape: ModelShape, context: int, bandwidth: float, meeting: float) -> float:
    """Of one among many."""
    timeline = Timeline(shape, bandwidth, meeting)
    timeline.ask(timeline.touched("qkv"))
    for _ in range(8):
        before = timeline.now
        timeline.layer(context)
    return timeline.now - before


def table(bandwidth: float, context: int) -> str:
    """A layer in microseconds and a plain step times its floor, as Markdown."""
    columns = ["chain", *(f"one launch, meetings of {each} µs" for each in MEETINGS)]
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (1 + len(columns))]
    model = Model(OURS, bandwidth)
    for shape in SHAPES[:2]:  # 14B's attention takes more warps than a product
        chain = model.layers(shape, 1, context)
        step, floor = model.step(shape, context), model.floor(shape.step_bytes(context))
        cells = [f"{chain:.1f} µs, {step / floor:.2f} x"]
        for meeting in MEETINGS:
            one = layer_time(shape, context, bandwidth, meeting)
            whole = step + (shape.num_layers - 1) * (one - chain)
            cells.append(f"{one:.1f} µs, {whole / floor:.2f} x")
        lines.append(f"| {shape.name} | {' | '.join(cells)} |")
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
