"""SPS: how many rounds per second the engine makes when the target verifies B tokens per pass."""

import json
import os
import statistics
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dspark.atomic import replacing
from dspark.config import SamplingConfig
from dspark.drafters.base import Drafter, DraftSlot
from dspark.engine.sampling import BatchChooser, Sampler
from dspark.targets.base import Slot, Target

CONTEXT_TOKENS = 128
TRIALS = 7
NOISY_SPREAD = 0.5  # idle machines stay below 0.2; one other busy process gives 0.5 to 3


@dataclass(frozen=True, slots=True)
class SpsCurve:
    """Seconds of a verify pass by its rows, and of a draft, for requests of that many tokens of
    context each."""

    requests: int
    depth: int
    rows: tuple[int, ...]
    verify_seconds: tuple[float, ...]
    draft_seconds: float

    def verify(self, rows: float) -> float:
        return _interpolate(self.rows, self.verify_seconds, rows)

    def steps_per_second(self, rows: int) -> float:
        return 1.0 / (self.verify(rows) + self.draft_seconds)


@dataclass(frozen=True, slots=True)
class SpsTable:
    """Seconds of a verify pass by its rows, and of drafting by the number of requests, at
    CONTEXT_TOKENS; `curves` are further measurements, of more requests or at greater depths.

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

    @property
    def is_noisy(self) -> bool:
        """Whether the machine was too busy for a usable measurement."""
        return self.spread > NOISY_SPREAD

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

    def curve(self, num_requests: int, depth: int) -> SpsCurve:
        """Between the measured ones, for many questions of one kind."""
        known = self._by_requests().values()
        every = [(n, curve.requests) for curves in known for curve in curves for n in curve.rows]
        scaled = {max(n * num_requests // own, 1) for n, own in every}
        rows = tuple(sorted(scaled | {n for n, _ in every}))
        seconds = tuple(self.verify(n, num_requests, depth) for n in rows)
        return SpsCurve(num_requests, depth, rows, seconds, self.draft(num_requests, depth))

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
            table = cls(**columns, curves=tuple(SpsCurve(**curve) for curve in curves))
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
    """Linear between measured points, proportional beyond the last."""
    index = bisect_left(xs, x)
    if index == len(xs):
        return ys[-1] * x / xs[-1]
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


def measure_sps(target: Target, drafter: Drafter, pair: str = "") -> SpsTable:
    """Medians on this machine, at a short context."""
    with torch.inference_mode():
        slot, draft_slot = target.open(), drafter.open()
        context = torch.arange(CONTEXT_TOKENS, device=target.device) % 7
        drafter.extend([draft_slot], [context], [target.prefill(slot, context).taps])
    try:
        return measure_sps_at(target, drafter, slot, draft_slot, pair, TRIALS)
    finally:
        target.close(slot)
        drafter.close(draft_slot)


@torch.inference_mode()
def measure_sps_at(
    target: Target,
    drafter: Drafter,
    slot: Slot,
    draft_slot: DraftSlot,
    pair: str,
    trials: int,
) -> SpsTable:
    """Medians at the context of an open request, which is left unchanged. Trials are interleaved,
    so that a slow moment affects all points alike."""
    rows = measured_rows(drafter.block_size)
    verify: dict[int, list[float]] = {n: [] for n in rows}
    draft: list[float] = []
    for _ in range(trials):
        for n in rows:
            block = torch.zeros(n, dtype=torch.long, device=target.device)
            started = time.perf_counter()
            float(target.verify([slot], [block]).logits[-1, 0])
            verify[n].append(time.perf_counter() - started)
            target.commit([slot], [0])
        draft += draft_seconds(drafter, [draft_slot], target.device, 1)
    medians = [statistics.median(verify[n]) for n in rows]
    return SpsTable(
        rows=tuple(rows),
        verify_seconds=tuple(_never_falling(medians)),
        requests=(1,),
        draft_seconds=(statistics.median(draft),),
        spread=max(_spread(trial) for trial in (*verify.values(), draft)),
        measured_at=time.time(),
        pair=pair,
    )


@torch.inference_mode()
def measure_with_requests(
    target: Target, drafter: Drafter, num_requests: int, depth: int, trials: int
) -> SpsCurve:
    """With requests of its own, each with `depth` tokens of context."""
    slots = [target.open() for _ in range(num_requests)]
    draft_slots = [drafter.open() for _ in range(num_requests)]
    context = torch.arange(depth, device=target.device) % 7
    try:
        for slot, draft_slot in zip(slots, draft_slots, strict=True):
            drafter.extend([draft_slot], [context], [target.prefill(slot, context).taps])
        return measure_curve(target, drafter, slots, draft_slots, depth, trials)
    finally:
        for slot, draft_slot in zip(slots, draft_slots, strict=True):
            target.close(slot)
            drafter.close(draft_slot)


@torch.inference_mode()
def measure_curve(
    target: Target,
    drafter: Drafter,
    slots: Sequence[Slot],
    draft_slots: Sequence[DraftSlot],
    depth: int,
    trials: int,
) -> SpsCurve:
    """Medians with open requests, which are left unchanged: plain, one draft each, whole
    blocks."""
    sizes = sorted({1, 2, drafter.block_size + 1})
    verify: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(trials):
        for size in sizes:
            blocks = [torch.zeros(size, dtype=torch.long, device=target.device)] * len(slots)
            started = time.perf_counter()
            float(target.verify(slots, blocks).logits[-1, 0])
            verify[size].append(time.perf_counter() - started)
            target.commit(slots, [0] * len(slots))
    drafting = draft_seconds(drafter, draft_slots, target.device, trials)
    medians = _never_falling([statistics.median(verify[size]) for size in sizes])
    rows = tuple(size * len(slots) for size in sizes)
    return SpsCurve(len(slots), depth, rows, tuple(medians), statistics.median(drafting))


@torch.inference_mode()
def draft_seconds(
    drafter: Drafter, slots: Sequence[DraftSlot], device: torch.device, trials: int
) -> list[float]:
    """Seconds per trial of a draft for all of these requests, until the host has read it."""
    anchors = torch.zeros(len(slots), dtype=torch.long, device=device)
    chooser = BatchChooser([Sampler(SamplingConfig())] * len(slots))
    seconds = []
    for _ in range(trials):
        started = time.perf_counter()
        int(drafter.propose(slots, anchors, chooser).token_ids[0, -1])
        seconds.append(time.perf_counter() - started)
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
