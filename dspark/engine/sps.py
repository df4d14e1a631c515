"""SPS: how many rounds a second the engine makes when the target verifies B tokens in one pass."""

import json
import os
import statistics
import tempfile
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dspark.config import SamplingConfig
from dspark.drafters.base import Drafter
from dspark.engine.sampling import BatchChooser, Sampler
from dspark.targets.base import Target

CONTEXT_TOKENS = 128
TRIALS = 7


@dataclass(frozen=True, slots=True)
class SpsTable:
    """Seconds of a verify pass by its rows, and of drafting by the number of requests."""

    rows: tuple[int, ...]
    verify_seconds: tuple[float, ...]
    requests: tuple[int, ...]
    draft_seconds: tuple[float, ...]

    def steps_per_second(self, rows: int, num_requests: int) -> float:
        verify = _interpolate(self.rows, self.verify_seconds, rows)
        return 1.0 / (verify + _interpolate(self.requests, self.draft_seconds, num_requests))

    @classmethod
    def load(cls, path: Path) -> "SpsTable | None":
        """None where no usable table is stored."""
        try:
            raw = json.loads(path.read_text())
            table = cls(**{name: tuple(values) for name, values in raw.items()})
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        return table if len(table.rows) == len(table.verify_seconds) > 0 else None

    def save(self, path: Path) -> None:
        """A table that cannot be stored is measured again next time."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            with os.fdopen(handle, "w") as file:
                json.dump(asdict(self), file)
            os.replace(temporary, path)
        except OSError:
            return


def _interpolate(xs: Sequence[int], ys: Sequence[float], x: int) -> float:
    """Between two measured points linearly, beyond the last in proportion."""
    index = bisect_left(xs, x)
    if index == len(xs):
        return ys[-1] * x / xs[-1]
    if xs[index] == x or index == 0:
        return ys[index]
    share = (x - xs[index - 1]) / (xs[index] - xs[index - 1])
    return ys[index - 1] + share * (ys[index] - ys[index - 1])


def measure_sps(target: Target, drafter: Drafter) -> SpsTable:
    """Medians on this machine, trials interleaved so that a slow moment hits all alike."""
    with torch.inference_mode():
        slot, draft_slot = target.open(), drafter.open()
        context = torch.arange(CONTEXT_TOKENS, device=target.device) % 7
        drafter.extend([draft_slot], [context], [target.prefill(slot, context).taps])
        full = drafter.block_size + 1
        rows = [*range(1, full + 1), 2 * full, 4 * full]
        verify: dict[int, list[float]] = {n: [] for n in rows}
        draft: list[float] = []
        anchors = torch.zeros(1, dtype=torch.long, device=target.device)
        chooser = BatchChooser([Sampler(SamplingConfig())])
        for _ in range(TRIALS):
            for n in rows:
                block = torch.zeros(n, dtype=torch.long, device=target.device)
                started = time.perf_counter()
                float(target.verify([slot], [block]).logits[-1, 0])
                verify[n].append(time.perf_counter() - started)
                target.commit([slot], [0])
            started = time.perf_counter()
            int(drafter.propose([draft_slot], anchors, chooser).token_ids[0, -1])
            draft.append(time.perf_counter() - started)
    medians = [statistics.median(verify[n]) for n in rows]
    return SpsTable(
        rows=tuple(rows),
        verify_seconds=tuple(_never_falling(medians)),
        requests=(1,),
        draft_seconds=(statistics.median(draft),),
    )


def _never_falling(seconds: Sequence[float]) -> list[float]:
    """A pass over fewer rows can be padded to more, so it never costs more than they do."""
    return [min(seconds[index:]) for index in range(len(seconds))]
