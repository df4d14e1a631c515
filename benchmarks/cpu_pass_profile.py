"""Where a pass on the CPU's kernels goes, operation by operation, as its threads run it.

Between the operations of a real pass stand stamps, which write the processor's clock once all
threads have ended what stands before them. A figure is the sum over layers of each layer's quickest
turn; `stamps` is what they themselves cost, each as much as an operation that does nothing, and
`whole pass` the quickest turn without them.
"""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from dspark_kernels import RotaryTable
from dspark_kernels.cpu.decoder_pass import MAX_ROWS, Decoder, DecoderPass
from dspark_kernels.cpu.matrix import multiply_op
from dspark_kernels.cpu.object_code import Library, load_library
from dspark_kernels.cpu.processor import Variant
from dspark_kernels.cpu.rounded import empty_rounded
from dspark_kernels.cpu.runtime import Op, Program, Runtime
from dspark_kernels.cpu.step_words import Pages, Place, step_words
from dspark_kernels.paged_cache import PAGE, num_pages_for

STAMP = "stamp"
STAMP_TEXT = """
define void @stamp(ptr %own, ptr %step, i64 %first, i64 %last) {
  %place = load ptr, ptr %own, align 8
  %now = call i64 @llvm.readcyclecounter()
  store i64 %now, ptr %place, align 8
  ret void
}
declare i64 @llvm.readcyclecounter()
"""


class Turn(NamedTuple):
    """Of a pass, in milliseconds: each operation with its name, and the whole without stamps."""

    names: Sequence[str]
    parts: list[float]
    whole: float


class StampingRuntime(Runtime):
    """Knows one more operation."""

    def __init__(self, variant: Variant, num_threads: int) -> None:
        self._stamps: Library = load_library(STAMP, lambda: STAMP_TEXT, [STAMP], variant, None)
        super().__init__(variant, num_threads, None)

    def address(self, function: str) -> int:
        return self._stamps.addresses[STAMP] if function == STAMP else super().address(function)


class ProfiledPass:
    """A pass of `rows` rows of one request behind `before` positions, to logits."""

    def __init__(self, runtime: StampingRuntime, decoder: Decoder, rows: int, before: int) -> None:
        whole = DecoderPass(runtime, decoder)
        hidden = decoder.final_norm.shape[0]
        logits = torch.empty(rows, decoder.embedding.num_columns)
        head = multiply_op(decoder.embedding, None, empty_rounded(MAX_ROWS, hidden).data, logits)
        ops = [*whole.ops, head]
        self.names = list(_names(decoder))
        self._times = torch.zeros(len(ops) + 2, dtype=torch.int64)
        stamped = [self._stamp(0), self._stamp(1)]  # between them lies nothing
        for index, op in enumerate(ops):
            stamped += [op, self._stamp(index + 2)]
        self._kept = whole
        self._plain, self._stamped = Program(runtime, ops), Program(runtime, stamped)
        self._tensors = _inputs(decoder, rows, before)
        place, rotary, cache, tokens = self._tensors
        self._words = step_words(place, rotary, cache, tokens)

    def _stamp(self, index: int) -> Op:
        return Op(STAMP, 1, 0, (self._times[index:],))

    def turn(self) -> Turn:
        start = time.perf_counter()
        self._plain(self._words)
        middle = time.perf_counter()
        self._stamped(self._words)
        taken = 1e3 * (time.perf_counter() - middle)
        cycles = self._times.diff()
        parts = (cycles * (taken / float(cycles.sum()))).tolist()
        return Turn(self.names, parts, 1e3 * (middle - start))


def _names(decoder: Decoder) -> Iterator[str]:
    """Of the operations, in their order, those of weights of one format alone."""
    yield from ("stamps", "embedding")
    for _ in decoder.layers:
        yield from ("norms", "qkv", "rope", "attention", "o")
        yield from ("norms", "gate+up", "swiglu", "down")
    yield from ("norms", "head")


def _inputs(
    decoder: Decoder, rows: int, before: int
) -> tuple[Place, tuple[torch.Tensor, torch.Tensor], Pages, torch.Tensor]:
    heads, capacity = decoder.layers[0].heads, before + rows
    inverse = 1e5 ** (-torch.arange(0, heads.head_dim, 2) / heads.head_dim)
    cos, sin = RotaryTable(inverse, 1.0, torch.float32).upto(capacity - 1)
    pages = num_pages_for(capacity)
    sizes = (len(decoder.layers), 2, pages, heads.num_kv_heads, PAGE, heads.head_dim)
    cache = Pages(torch.zeros(sizes), torch.arange(pages, dtype=torch.int32).unsqueeze(0))
    positions = torch.arange(before, before + rows)
    place = Place(positions, torch.zeros(rows, dtype=torch.int64), positions + 1)
    tokens = torch.randint(decoder.embedding.num_outputs, (rows,))
    return place, (cos.contiguous(), sin.contiguous()), cache, tokens


class Quickest:
    """Of many turns: of every operation and of the whole."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []

    def add(self, turn: Turn) -> None:
        self._turns.append(turn)

    def milliseconds(self) -> dict[str, float]:
        table: dict[str, float] = {}
        quickest = torch.tensor([turn.parts for turn in self._turns]).amin(0).tolist()
        for name, part in zip(self._turns[0].names, quickest, strict=True):
            count = len(quickest) - 1 if name == "stamps" else 1
            table[name] = table.get(name, 0.0) + count * part
        table["all"] = sum(table.values()) - table["stamps"]
        table["whole pass"] = min(turn.whole for turn in self._turns)
        return table


def pass_table(
    decoder: Decoder,
    variant: Variant,
    threads: int,
    sizes: Sequence[tuple[int, int]],
    turns: int,
) -> dict[str, dict[str, float]]:
    """Milliseconds by operation for each pair of rows and positions before them, in turns."""
    runtime = StampingRuntime(variant, threads)
    passes = {
        f"{rows} rows after {before}": ProfiledPass(runtime, decoder, rows, before)
        for rows, before in sizes
    }
    quickest = {name: Quickest() for name in passes}
    for _ in range(turns):
        for name, each in passes.items():
            quickest[name].add(each.turn())
    return {
        name: {part: round(time, 3) for part, time in each.milliseconds().items()}
        for name, each in quickest.items()
    }


def print_pass_table(table: dict[str, dict[str, float]]) -> None:
    print(f"{'ms':12}" + "".join(f"{name.replace(' rows after ', ' @ '):>10}" for name in table))
    for part in next(iter(table.values())):
        print(f"{part:12}" + "".join(f"{column[part]:10.3f}" for column in table.values()))
