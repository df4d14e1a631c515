"""How likely a draft is accepted, given those before it: of finished rounds, by position."""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

FIRST_GUESS = 0.75  # a head that was not seen at work is taken for a good one
GUESS_WEIGHT = 4.0  # drafts
MEMORY = 1 - 1 / 512  # per request and round


class Acceptance:
    """A draft counts if it was verified and those before it were accepted."""

    def __init__(self, block_size: int) -> None:
        self.tried = [GUESS_WEIGHT] * block_size
        self.kept = [GUESS_WEIGHT * FIRST_GUESS] * block_size

    def record(self, verified: int, accepted: int) -> None:
        """One request's block."""
        for position in range(min(accepted + 1, verified, len(self.tried))):
            is_kept = position < accepted
            self.tried[position] = MEMORY * self.tried[position] + 1
            self.kept[position] = MEMORY * self.kept[position] + is_kept

    @property
    def rates(self) -> list[float]:
        """[K]: that each draft is accepted, given that those before it were."""
        return [kept / tried for kept, tried in zip(self.kept, self.tried, strict=True)]

    @property
    def survival(self) -> list[float]:
        """[K]: that a block's first k drafts are accepted."""
        return [*accumulate(self.rates, mul)]

    def load(self, tried: Sequence[float], kept: Sequence[float]) -> None:
        """What an earlier process saw; nothing if it does not fit this block."""
        pairs = [*zip(tried, kept, strict=True)]
        if len(pairs) == len(self.tried) and all(0 <= b <= a and a > 0 for a, b in pairs):
            self.tried, self.kept = [*map(float, tried)], [*map(float, kept)]
