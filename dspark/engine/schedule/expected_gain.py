"""What drafting should gain: accepted tokens against the time of draft and verification."""

from collections.abc import Sequence
from dataclasses import dataclass

from dspark.engine.schedule.sps_profile import SpsCurve


@dataclass(frozen=True, slots=True)
class Gain:
    """Expected of one number of requests, in seconds: `length` drafts are the best choice, `gain`
    their tokens per second over plain decoding's."""

    requests: int
    plain_seconds: float
    draft_seconds: float
    round_seconds: float
    length: int
    gain: float

    @property
    def pays(self) -> bool:
        return self.gain > 1

    @property
    def cost(self) -> float:
        """Of a round, in plain rounds."""
        return self.round_seconds / self.plain_seconds


def expected_gain(curve: SpsCurve, survival: Sequence[float]) -> Gain:
    """Of the best fixed length; `survival` [K] is the share of blocks whose first k drafts are
    accepted."""
    count = curve.requests
    plain, draft = curve.plain_seconds, curve.draft_seconds

    def seconds(length: int) -> float:
        return draft + curve.verify(count * (length + 1))

    def gain(length: int) -> float:
        return (1 + sum(survival[:length])) * plain / seconds(length)

    best = max(range(1, len(survival) + 1), key=gain)
    return Gain(count, plain, draft, seconds(best), best, gain(best))
