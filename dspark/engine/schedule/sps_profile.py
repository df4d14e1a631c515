"""SPS: how many rounds per second the engine makes when the target verifies B tokens per pass."""

import json
import os
import statistics
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import log
from pathlib import Path
from typing import Any

import torch

from dspark.atomic import replacing
from dspark.config import SamplingConfig
from dspark.drafters.base import Drafter, DraftSlot
from dspark.engine.sampling import BatchChooser, Sampler
from dspark.targets.base import KernelTarget, Slot, Target
from dspark.targets.expert_use import RoutesExperts
from dspark_kernels.cpu.argmax import argmax

CONTEXT_TOKENS = 128
TRIALS = 7
EXPERT_TRIALS = 3
NOISY_SPREAD = 0.5  # idle machines stay below 0.2; one other busy process gives 0.5 to 3
DRIFT = 1.5  # ratio of a single request's rounds to the table, or its inverse: another machine
SEVERAL = 4  # requests whose draft is timed too
FASTEST_MEMORY = 1e12  # bytes a second, of a CPU: reads of experts cost something
LEAST_SHARE = 0.1  # of a corrected pass: no line makes it free


@dataclass(frozen=True, slots=True)
class SpsCurve:
    """Seconds of a verify pass by its rows, and of a draft, for requests of that many tokens of
    context each. `expert_reads`: routed experts that a pass read, none of a target without."""

    requests: int
    depth: int
    rows: tuple[int, ...]
    verify_seconds: tuple[float, ...]
    draft_seconds: float
    expert_reads: tuple[float, ...] = ()

    def reads(self, rows: float) -> float:
        return _interpolate(self.rows, self.expert_reads, rows) if self.expert_reads else 0.0

    def verify(self, rows: float) -> float:
        return _interpolate(self.rows, self.verify_seconds, rows)

    def steps_per_second(self, rows: int) -> float:
        return 1.0 / (self.verify(rows) + self.draft_seconds)

    def corrected(self, by: "Correction") -> "SpsCurve":
        """As rounds take it."""
        plain = self.verify(self.requests)
        seconds = tuple(
            max(by.level * plain + by.slope * (each - plain), LEAST_SHARE * by.level * each)
            for each in self.verify_seconds
        )
        return replace(self, verify_seconds=seconds, draft_seconds=by.draft * self.draft_seconds)


@dataclass(frozen=True, slots=True)
class Correction:
    """What finished rounds of so many requests took, in times of what was measured: a plain pass,
    each further row, and all of a round that is not the pass."""

    requests: int
    level: float
    slope: float
    draft: float


@dataclass(frozen=True, slots=True)
class SpsTable:
    """Seconds of a verify pass by its rows, and of drafting by the number of requests, at
    CONTEXT_TOKENS; `curves` are further measurements, of more requests or at greater depths, and
    `corrections` what finished rounds said of all that.

    `expert_reads` are routed experts that the passes read, `expert_seconds` what one cost.
    `spread` is the largest interquartile range of a point's trials over their median,
    `measured_at` a Unix time, `pair` the name under which it was measured.
    """

    rows: tuple[int, ...]
    verify_seconds: tuple[float, ...]
    requests: tuple[int, ...]
    draft_seconds: tuple[float, ...]
    spread: float = 0.0
    measured_at: float = 0.0
    pair: str = ""
    curves: tuple[SpsCurve, ...] = ()
    corrections: tuple[Correction, ...] = ()
    expert_reads: tuple[float, ...] = ()
    expert_seconds: float = 0.0

    @property
    def is_noisy(self) -> bool:
        """Whether the machine was too busy for a usable measurement."""
        return self.spread > NOISY_SPREAD

    @property
    def has_drifted(self) -> bool:
        """Whether rounds of one request take so much else that it is worth another measurement."""
        alone = [each.level for each in self.corrections if each.requests == 1]
        return any(not 1 / DRIFT < level < DRIFT for level in alone)

    def verify(self, rows: int, num_requests: int = 1, depth: int = CONTEXT_TOKENS) -> float:
        """Seconds of a pass over that many rows of all requests, each with `depth` tokens of
        context; between measured numbers of requests and depths on a line."""
        known = self._by_requests()
        counts = sorted(known)
        if num_requests >= counts[-1]:
            return self._at_depth(known[counts[-1]], rows, depth)
        # as many rows of each request
        seconds = [self._at_depth(known[n], rows * n / num_requests, depth) for n in counts]
        return _interpolate(counts, seconds, num_requests)

    def draft(self, num_requests: int, depth: int = CONTEXT_TOKENS) -> float:
        """Seconds of a draft for all requests."""
        base = _interpolate(self.requests, self.draft_seconds, num_requests)
        alone = self._by_requests()[1]
        depths, seconds = [c.depth for c in alone], [c.draft_seconds for c in alone]
        deeper = _on_line(depths, seconds, depth) - seconds[0]
        return base + num_requests * max(deeper, 0.0)

    def steps_per_second(self, rows: int, num_requests: int, depth: int = CONTEXT_TOKENS) -> float:
        seconds = self.verify(rows, num_requests, depth) + self.draft(num_requests, depth)
        return 1.0 / seconds

    def curve(self, num_requests: int, depth: int = CONTEXT_TOKENS) -> SpsCurve:
        """For many questions of one kind, as finished rounds correct it; where there were none, as
        those of the nearest number of requests do."""
        measured = self.measured_curve(num_requests, depth)
        known = sorted(self.corrections, key=lambda each: abs(log(each.requests / num_requests)))
        return measured.corrected(known[0]) if known else measured

    def measured_curve(self, num_requests: int, depth: int = CONTEXT_TOKENS) -> SpsCurve:
        """Between what was measured."""
        known = self._by_requests().values()
        every = [(n, curve.requests) for curves in known for curve in curves for n in curve.rows]
        scaled = {max(n * num_requests // own, 1) for n, own in every}
        rows = tuple(sorted(scaled | {n for n, _ in every}))
        seconds = tuple(self.verify(n, num_requests, depth) for n in rows)
        draft, reads = self.draft(num_requests, depth), self._reads(rows, num_requests, depth)
        return SpsCurve(num_requests, depth, rows, seconds, draft, reads)

    def _reads(self, rows: Sequence[int], num_requests: int, depth: int) -> tuple[float, ...]:
        """Of experts, between what was counted as seconds are between what was timed."""
        counted = [each for each in self.curves if each.expert_reads]
        if not self.expert_reads:
            return ()
        curves = tuple(replace(each, verify_seconds=each.expert_reads) for each in counted)
        reads = replace(self, verify_seconds=self.expert_reads, curves=curves, expert_reads=())
        return tuple(reads.verify(n, num_requests, depth) for n in rows)

    def _by_requests(self) -> dict[int, list[SpsCurve]]:
        """Curves by number of requests, the shallowest first."""
        base = SpsCurve(1, CONTEXT_TOKENS, self.rows, self.verify_seconds, self.draft_seconds[0])
        known: dict[int, list[SpsCurve]] = {}
        for curve in sorted((base, *self.curves), key=lambda curve: curve.depth):
            known.setdefault(curve.requests, []).append(curve)
        return known

    def _at_depth(self, curves: Sequence[SpsCurve], rows: float, depth: int) -> float:
        """Requests of one depth only grow with it as a single request does, each by as much."""
        depths, seconds = [c.depth for c in curves], [c.verify(rows) for c in curves]
        alone = self._by_requests()[1]
        if len(curves) > 1 or curves[0].requests == 1:
            return _on_line(depths, seconds, depth)
        own_depths, own = [c.depth for c in alone], [c.verify(alone[-1].rows[0]) for c in alone]
        growth = _on_line(own_depths, own, depth) - _on_line(own_depths, own, depths[0])
        return max(seconds[0] + curves[0].requests * growth, 0.0)

    def with_curve(self, curve: SpsCurve) -> "SpsTable":
        """Including it, instead of an earlier one of the same requests and depth."""
        others = [c for c in self.curves if (c.requests, c.depth) != (curve.requests, curve.depth)]
        return replace(self, curves=(*others, curve))

    def with_requests(self, num_requests: int, seconds: float) -> "SpsTable":
        """Including the time of drafting for that many requests."""
        known = {**dict(zip(self.requests, self.draft_seconds, strict=True)), num_requests: seconds}
        counts = tuple(sorted(known))
        return replace(self, requests=counts, draft_seconds=tuple(known[count] for count in counts))

    @classmethod
    def load(cls, path: Path) -> "SpsTable | None":
        """None if no usable table is stored."""
        try:
            raw = json.loads(path.read_text())
            columns: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in raw.items()
            }
            curves: list[dict[str, Any]] = [
                {n: tuple(v) if isinstance(v, list) else v for n, v in curve.items()}
                for curve in columns.pop("curves", ())
            ]
            corrections = tuple(Correction(**each) for each in columns.pop("corrections", ()))
            curves_of = tuple(SpsCurve(**curve) for curve in curves)
            table = cls(**columns, curves=curves_of, corrections=corrections)
            is_whole = len(table.rows) == len(table.verify_seconds) > 0 < table.measured_at
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        return table if is_whole else None

    def save(self, path: Path) -> None:
        """A table that cannot be stored is measured again next time."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # several processes may measure at the same time
            own = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            with replacing(path, own) as partial:
                partial.write_text(json.dumps(asdict(self)))
        except OSError:
            return


def _interpolate(xs: Sequence[int], ys: Sequence[float], x: float) -> float:
    """Linear between measured points, and beyond the last as from the first to the last."""
    index = bisect_left(xs, x)
    if index == len(xs):
        slope = (ys[-1] - ys[0]) / (xs[-1] - xs[0]) if len(xs) > 1 else ys[-1] / xs[-1]
        return ys[-1] + slope * (x - xs[-1])
    if xs[index] == x or index == 0:
        return ys[index]
    share = (x - xs[index - 1]) / (xs[index] - xs[index - 1])
    return ys[index - 1] + share * (ys[index] - ys[index - 1])


def _on_line(xs: Sequence[int], ys: Sequence[float], x: int) -> float:
    """Linear between measured points; level before the first, straight on after the last."""
    if len(xs) == 1 or x <= xs[0]:
        return ys[0]
    right = min(bisect_left(xs, x), len(xs) - 1)
    slope = (ys[right] - ys[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + max(slope, 0.0) * (x - xs[right - 1])


def stored_tables(folder: Path) -> Iterator[SpsTable]:
    """Every usable table below the store's `sps` folder, newest first."""
    tables = [SpsTable.load(path) for path in folder.glob("*.json")]
    usable = [table for table in tables if table is not None]
    return iter(sorted(usable, key=lambda table: -table.measured_at))


@torch.inference_mode()
def measure_sps(target: Target, drafter: Drafter, pair: str = "") -> SpsTable:
    """Medians on this machine, at a short context. Trials are interleaved, so that a slow moment
    affects all points alike; the first, in which memory is touched, is not counted."""
    counts = (1, SEVERAL) if target.spec.batches else (1,)
    rows = measured_rows(drafter.block_size)
    with _open_requests(target, drafter, 1, counts[-1], CONTEXT_TOKENS) as opened:
        (slot,), draft_slots, taps = opened
        verify: dict[int, list[float]] = {n: [] for n in rows}
        draft: dict[int, list[float]] = {n: [] for n in counts}
        reads = {n: 0.0 for n in rows}
        for _ in range(1 + TRIALS):
            _verify_seconds(target, [slot], 1)  # a plain pass comes behind another
            for n in rows:
                verify[n].append(_verify_seconds(target, [slot], n))
                reads[n] = _reads_of(target)
            for n in counts:
                _verify_seconds(target, [slot], drafter.block_size + 1)  # as rounds do
                draft[n].append(_draft_seconds(drafter, draft_slots[:n], taps))
        expert_seconds = _expert_seconds(target, slot, drafter.block_size + 1)
    for seconds in (*verify.values(), *draft.values()):
        del seconds[0]
    medians = [statistics.median(verify[n]) for n in rows]
    drafting = [statistics.median(draft[n]) for n in counts]
    return SpsTable(
        rows=tuple(rows),
        verify_seconds=tuple(_never_falling(medians)),
        requests=counts,
        draft_seconds=tuple(_never_falling(drafting)),
        spread=max(_spread(trial) for trial in (*verify.values(), draft[1])),
        measured_at=time.time(),
        pair=pair,
        expert_reads=tuple(reads.values()) if expert_seconds else (),
        expert_seconds=expert_seconds,
    )


@torch.inference_mode()
def measure_with_requests(
    target: Target, drafter: Drafter, num_requests: int, depth: int, trials: int
) -> SpsCurve:
    """Medians of requests with `depth` tokens of context each: plain, one draft each, whole
    blocks."""
    sizes = sorted({1, 2, drafter.block_size + 1})
    verify: dict[int, list[float]] = {size: [] for size in sizes}
    reads = {size: 0.0 for size in sizes}
    drafting = []
    with _open_requests(target, drafter, num_requests, num_requests, depth) as opened:
        slots, draft_slots, taps = opened
        for _ in range(trials):
            _verify_seconds(target, slots, 1)
            for size in sizes:
                verify[size].append(_verify_seconds(target, slots, size))
                reads[size] = _reads_of(target)
            drafting.append(_draft_seconds(drafter, draft_slots, taps))
    medians = _never_falling([statistics.median(verify[size]) for size in sizes])
    rows = tuple(size * num_requests for size in sizes)
    own = tuple(reads.values()) if isinstance(target, RoutesExperts) else ()
    return SpsCurve(num_requests, depth, rows, tuple(medians), statistics.median(drafting), own)


@contextmanager
def _open_requests(
    target: Target, drafter: Drafter, num_requests: int, num_drafting: int, depth: int
) -> Iterator[tuple[list[Slot], list[DraftSlot], torch.Tensor]]:
    """Slots of the target and of the drafter, with `depth` tokens each, and their taps."""
    slots, draft_slots = [], []
    context = torch.arange(depth, device=target.device) % 7
    taps = torch.empty(0)
    try:
        for _ in range(num_requests):
            slots.append(target.open())
            taps = target.prefill(slots[-1], context).taps.clone()
        for _ in range(num_drafting):
            draft_slots.append(drafter.open())
            drafter.extend([draft_slots[-1]], [context], [taps])
        yield slots, draft_slots, taps
    finally:
        for slot in slots:
            target.close(slot)
        for draft_slot in draft_slots:
            drafter.close(draft_slot)


def _reads_of(target: Target) -> float:
    """Routed experts that the last pass read."""
    use = target.expert_use() if isinstance(target, RoutesExperts) else None
    return 0.0 if use is None else float(use.reads)


def _expert_seconds(target: Target, slot: Slot, size: int) -> float:
    """Of reading one more expert: passes of as many rows, of one token and of different ones, do
    the same but for the experts. 0 for a target without, or whose tokens share all of them."""
    if not isinstance(target, RoutesExperts):
        return 0.0
    generator = torch.Generator().manual_seed(0)
    different = torch.randint(0, target.spec.vocab_size, (EXPERT_TRIALS, size), generator=generator)
    same: list[tuple[float, float]] = []
    mixed: list[tuple[float, float]] = []
    for tokens in different.to(target.device):
        for block, found in ((torch.zeros_like(tokens), same), (tokens, mixed)):
            found.append((_verify_seconds(target, [slot], size, block), _reads_of(target)))
    (seconds, reads), (longer, more) = (
        (statistics.median(each[0] for each in found), statistics.mean(each[1] for each in found))
        for found in (same, mixed)
    )
    price = (longer - seconds) / (more - reads) if more > reads else 0.0
    return max(price, target.expert_shape.num_bytes / FASTEST_MEMORY)


def _verify_seconds(
    target: Target, slots: Sequence[Slot], size: int, block: torch.Tensor | None = None
) -> float:
    """Of `size` rows for each of these requests, until the host has read what is likeliest."""
    if block is None:
        block = torch.zeros(size, dtype=torch.long, device=target.device)
    ids, tokens = [block.tolist()] * len(slots), [block] * len(slots)
    started = time.perf_counter()
    if isinstance(target, KernelTarget):  # as rounds do
        verified = target.verify_ids(slots, ids)
    else:
        verified = target.verify(slots, tokens)
    if verified.largest is None:
        argmax(verified.logits)[0].tolist()
    seconds = time.perf_counter() - started
    target.commit(slots, [0] * len(slots))
    return seconds


def _draft_seconds(drafter: Drafter, slots: Sequence[DraftSlot], taps: torch.Tensor) -> float:
    """Of a draft for all of these requests, until the host has read it, and of taking in the two
    tokens that a round adds."""
    device, depth = taps.device, len(taps)
    anchors = torch.zeros(len(slots), dtype=torch.long, device=device)
    chooser = BatchChooser([Sampler(SamplingConfig())] * len(slots))
    started = time.perf_counter()
    drafter.extend(slots, [anchors.new_zeros(2)] * len(slots), [taps[:2]] * len(slots))
    int(drafter.propose(slots, anchors, chooser).token_ids[0, -1])
    seconds = time.perf_counter() - started
    for slot in slots:
        drafter.truncate(slot, depth)
    return seconds


def measured_rows(block_size: int) -> list[int]:
    """The timed passes: every length of one block, and two of several requests."""
    full = block_size + 1
    return [*range(1, full + 1), 2 * full, 4 * full]


def _spread(seconds: Sequence[float]) -> float:
    lower, middle, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return (upper - lower) / middle


def _never_falling(seconds: Sequence[float]) -> list[float]:
    """A pass over fewer rows can be padded to more, so it never costs more than they do."""
    return [min(seconds[index:]) for index in range(len(seconds))]
