"""What a further row costs where experts are routed: those it brings, times the time to read one.

Everything is an average over finished rounds, so that no decision about a draft depends on that
draft or on a later one. How many experts a row brings beyond those of the rows before it begins
with the guess that rows route independently; what one costs was measured where the pair was loaded,
and of experts that memory does not hold it is what rounds took.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from dspark.engine.schedule.sps_profile import SpsCurve
from dspark.targets.expert_use import ExpertShape, ExpertUse

MEMORY = 1 - 1 / 32  # per round
OUTLIER = 4.0  # times the price of a far read: another program had the disk
FAR_RATE = 3e9  # bytes a second of an SSD, before a read was timed


@dataclass(slots=True)
class ExpertPrices:
    """`near_seconds` of reading an expert from memory, as measured. The rest are averages."""

    shape: ExpertShape
    block_size: int
    near_seconds: float
    far_seconds: float = 0.0
    far_share: float = 0.0  # of all reads
    new: list[float] = field(default_factory=list)  # [1 + K], by the row's place in its block
    rounds: int = 0

    def __post_init__(self) -> None:
        shape = self.shape
        self.far_seconds = self.far_seconds or shape.num_bytes / FAR_RATE
        others = 1 - shape.per_token / shape.per_layer
        reads = shape.layers * shape.per_token
        self.new = self.new or [reads * others**row for row in range(self.block_size + 1)]

    @property
    def read_seconds(self) -> float:
        """Of an expert, wherever it is."""
        return self.near_seconds + self.far_share * (self.far_seconds - self.near_seconds)

    def record(self, use: ExpertUse) -> None:
        """A finished round."""
        self.rounds += 1
        for row in range(len(self.new)):
            brought = [each[row] for each in use.new if row < len(each)]
            if brought:
                self.new[row] = _towards(self.new[row], sum(brought) / len(brought))
        if use.reads:
            self.far_share = _towards(self.far_share, use.far / use.reads)

    def record_far(self, use: ExpertUse, pass_seconds: float, curve: SpsCurve, rows: int) -> None:
        """By a finished round; had all its experts been in memory, it would have taken what the
        curve says."""
        others = use.reads - use.far - curve.reads(rows)
        expected = curve.verify(rows) + others * self.near_seconds
        took = max(self.near_seconds, (pass_seconds - expected) / use.far)
        self.far_seconds = _towards(self.far_seconds, min(took, OUTLIER * self.far_seconds))

    def reads(self, rows: float, num_requests: int) -> float:
        """Expected distinct reads of a pass, its rows shared out evenly among blocks, which route
        independently of each other."""
        own, all_experts = self._own_reads(rows / num_requests), self.shape.layers
        all_experts *= self.shape.per_layer
        return all_experts * (1 - (1 - min(own / all_experts, 1.0)) ** num_requests)

    def priced(self, curve: SpsCurve) -> SpsCurve:
        """The curve with the experts that rows are expected to read in place of those that were
        read when it was measured; a pass never gets cheaper by more rows."""
        seconds: list[float] = []
        for rows, measured, read in zip(
            curve.rows, curve.verify_seconds, curve.expert_reads, strict=True
        ):
            dense = max(measured - read * self.near_seconds, 0.0)
            now = dense + self.reads(rows, curve.requests) * self.read_seconds
            seconds.append(max([now, *seconds[-1:]]))
        return replace(curve, verify_seconds=tuple(seconds))

    def as_measured(self, use: ExpertUse, curve: SpsCurve, rows: int, pass_seconds: float) -> float:
        """Seconds that the pass would have taken with the experts of the curve's measurement; what
        far reads took cannot be told from the rest, so they leave the curve as it is."""
        if use.far:
            return curve.verify(rows)
        of_experts = use.reads * self.near_seconds
        measured = curve.reads(rows) * self.near_seconds
        return max(pass_seconds - of_experts + measured, measured)

    def figures(self) -> dict[str, Any]:
        shape = self.shape
        plain = shape.layers * shape.per_token
        return {
            "expert_bytes": shape.num_bytes,
            "new_experts": list(self.new),
            "shared": [1 - each / plain for each in self.new],
            "near_seconds": self.near_seconds,
            "far_seconds": self.far_seconds if self.far_share else None,
            "far_share": self.far_share,
            "rounds": self.rounds,
        }

    def _own_reads(self, rows: float) -> float:
        """Of one block; rows beyond the longest block bring as many as its last one."""
        whole = int(rows)
        known = self.new + [self.new[-1]] * max(whole + 1 - len(self.new), 0)
        return sum(known[:whole]) + (rows - whole) * known[whole]


def _towards(mean: float, value: float) -> float:
    return mean + (1 - MEMORY) * (value - mean)
