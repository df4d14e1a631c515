"""SPS: how many rounds per second the engine makes when the target verifies B tokens per pass."""

import json
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import log
from pathlib import Path
from typing import Any

from dspark.atomic import replacing

CONTEXT_TOKENS = 128
NOISY_SPREAD = 0.5  # idle machines stay below 0.2; one other busy process gives 0.5 to 3
DRIFT = 1.5  # ratio of a single request's rounds to the table, or its inverse: another machine
LEAST_SHARE = 0.1  # of a corrected pass: no line makes it free


@dataclass(frozen=True, slots=True)
class SpsCurve:
    """Seconds of a verify pass by its rows, and of a draft, for requests of that many tokens of
    context each. `expert_reads`: routed experts that a pass read, none of a target without;
    `plain_rest`: seconds of a plain round that are not its pass."""

    requests: int
    depth: int
    rows: tuple[int, ...]
    verify_seconds: tuple[float, ...]
    draft_seconds: float
    expert_reads: tuple[float, ...] = ()
    plain_rest: float = 0.0

    @property
    def plain_seconds(self) -> float:
        """Of a plain round."""
        return self.verify(self.requests) + self.plain_rest

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
        draft, rest = by.draft * self.draft_seconds, by.rest * plain
        return replace(self, verify_seconds=seconds, draft_seconds=draft, plain_rest=rest)


@dataclass(frozen=True, slots=True)
class Correction:
    """What finished rounds of so many requests took, in times of what was measured: a plain pass,
    each further row, and all of a round that is not the pass. `rest` is that of a plain round, over
    a plain pass."""

    requests: int
    level: float
    slope: float
    draft: float
    rest: float = 0.0


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
