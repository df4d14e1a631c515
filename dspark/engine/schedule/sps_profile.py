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
class SpsTable:
    """Seconds of a verify pass by its rows, and of drafting by the number of requests.

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

    @property
    def is_noisy(self) -> bool:
        """Whether the machine was too busy for a usable measurement."""
        return self.spread > NOISY_SPREAD

    def steps_per_second(self, rows: int, num_requests: int) -> float:
        verify = _interpolate(self.rows, self.verify_seconds, rows)
        return 1.0 / (verify + _interpolate(self.requests, self.draft_seconds, num_requests))

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
            table = cls(**columns)
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


def _interpolate(xs: Sequence[int], ys: Sequence[float], x: int) -> float:
    """Linear between measured points, proportional beyond the last."""
    index = bisect_left(xs, x)
    if index == len(xs):
        return ys[-1] * x / xs[-1]
    if xs[index] == x or index == 0:
        return ys[index]
    share = (x - xs[index - 1]) / (xs[index] - xs[index - 1])
    return ys[index - 1] + share * (ys[index] - ys[index - 1])


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
