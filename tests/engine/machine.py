"""A machine without a clock: passes and drafts of stated cost, drafts that are accepted as likely
as their confidences say.

DEMO is the demo on two cores as it was measured in November 2026, in milliseconds.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dspark.engine.schedule.expected_gain import expected_gain
from dspark.engine.schedule.parking import Parking
from dspark.engine.schedule.policies import Scheduler
from dspark.engine.schedule.sps_profile import SpsTable

BLOCK = 4
DEMO = ((1, 5.1), (3, 6.9), (5, 9.7), (20, 26.0), (96, 110.0))
CHEAP_ROWS = ((1, 5.1), (3, 5.6), (5, 6.3), (20, 14.0), (96, 60.0))
EVERY_ROW_AS_DEAR = ((1, 5.1), (96, 96 * 5.1))
CARD = ((1, 5.0), (64, 5.5), (96, 8.0))
SPREAD = 4.0  # of the Beta law of confidences


@dataclass(frozen=True)
class Machine:
    """`points`: seconds of a pass by its rows; `draft`: of a draft for one request, of which each
    further one costs a fifth. `around`: seconds besides of a plain round and of one with drafts,
    which no table knows; `behind`: how much longer the first plain round behind drafts takes, the
    tenth as long as ever."""

    points: Sequence[tuple[int, float]]
    draft: float
    likely: float
    noise: float = 0.05
    outliers: float = 0.0
    around: tuple[float, float] = (0.0, 0.0)
    behind: float = 0.0

    def pass_seconds(self, rows: int) -> float:
        (x0, y0), (x1, y1) = next(
            pair
            for pair in zip(self.points, self.points[1:], strict=False)
            if rows <= pair[1][0] or pair[1] == self.points[-1]
        )
        return y0 + (y1 - y0) * (rows - x0) / (x1 - x0)

    def draft_seconds(self, requests: int) -> float:
        return self.draft * (1 + 0.2 * (requests - 1))

    def table(self) -> SpsTable:
        """As it is measured where a pair is loaded."""
        rows = (*range(1, BLOCK + 2), 2 * (BLOCK + 1), 4 * (BLOCK + 1))
        draft = (self.draft_seconds(1), self.draft_seconds(4))
        return SpsTable(rows, tuple(map(self.pass_seconds, rows)), (1, 4), draft, measured_at=1.0)

    def plain_rate(self, requests: int) -> float:
        """Tokens per second of all requests."""
        return requests / (self.pass_seconds(requests) + self.around[0])

    def fixed_rate(self, requests: int, length: int) -> float:
        tokens = requests * sum(self.likely**k for k in range(length + 1))
        seconds = self.pass_seconds(requests * (length + 1)) + self.draft_seconds(requests)
        return tokens / (seconds + self.around[1])

    def best_rate(self, requests: int) -> float:
        """Of plain decoding and every fixed length."""
        fixed = [self.fixed_rate(requests, length) for length in range(1, BLOCK + 1)]
        return max(self.plain_rate(requests), *fixed)

    def run(
        self, parking: Parking, schedule: Scheduler, requests: int, tokens: int, dice: random.Random
    ) -> "Decoded":
        """That many tokens of all requests together."""
        seconds, written, drafted, since = 0.0, 0, 0, 10
        while written < tokens:
            wants = parking.wants_drafts(requests)
            blocks = self._blocks(schedule, requests, dice) if wants else [(0, 0)] * requests
            rows = sum(verified + 1 for verified, _ in blocks)
            since = 0 if wants else min(since + 1, 10)
            took = self.pass_seconds(rows) * (1 + (not wants) * self.behind * (1 - since / 10))
            took += self.around[wants] + (self.draft_seconds(requests) if wants else 0.0)
            took *= dice.lognormvariate(0.0, self.noise) * (1 + 2 * (dice.random() < self.outliers))
            parking.record(took, blocks, has_drafts=wants)
            gained = sum(accepted + 1 for _, accepted in blocks)
            seconds, written, drafted = seconds + took, written + gained, drafted + wants * gained
        return Decoded(written / seconds * (1 + 2 * self.outliers), drafted / written)

    def text(
        self, parking: Parking, schedule: Scheduler, requests: int, tokens: int, dice: random.Random
    ) -> float:
        """Seconds of as many new texts at once, each of that many tokens."""
        for _ in range(requests):
            parking.begin_text()
        each = requests * tokens
        return each / self.run(parking, schedule, requests, each, dice).rate

    def _blocks(
        self, schedule: Scheduler, requests: int, dice: random.Random
    ) -> list[tuple[int, int]]:
        shape = SPREAD * self.likely, SPREAD * (1 - self.likely)
        rows = [[dice.betavariate(*shape) for _ in range(BLOCK)] for _ in range(requests)]
        lengths = schedule.admit(torch.tensor(rows), [BLOCK] * requests)
        return [
            (length, next((k for k in range(length) if dice.random() >= row[k]), length))
            for row, length in zip(rows, lengths, strict=True)
        ]


@dataclass(frozen=True)
class Decoded:
    """Tokens per second, and the share of them from rounds with drafts."""

    rate: float
    drafted: float


def parking_of(table: SpsTable, path: Path | None = None) -> Parking:
    """As an engine makes it."""
    return Parking(
        path,
        lambda n: table.curve(n).verify(n),
        lambda n, survival: expected_gain(table.curve(n), survival),
        BLOCK,
    )
