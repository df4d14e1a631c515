"""Taps of parked rounds that the device leads, until its drafter takes them in."""

from collections.abc import Iterator

import torch

MOST_ROUNDS = 64  # as many rows of a request as a pass has
MOST_ROWS = 1024  # of all requests together


class WaitingTaps:
    """One row a lane and round, at `place` [1] on the device, so that a captured round can add its
    own; the host knows the number."""

    def __init__(
        self, num_lanes: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.place = torch.zeros(1, device=device, dtype=torch.int64)
        self.number = 0
        self._most = max(min(MOST_ROUNDS, MOST_ROWS // num_lanes), 1)
        self._shape, self._dtype = (num_lanes, self._most + 1, width), dtype
        self._taps: torch.Tensor | None = None

    @property
    def is_full(self) -> bool:
        return self.number == self._most

    def prepare(self) -> None:
        """Its memory, before a round is captured; the last row is for the trial of that."""
        if self._taps is None:
            self._taps = torch.zeros(self._shape, device=self.place.device, dtype=self._dtype)

    def add(self, taps: torch.Tensor) -> None:
        """taps [lanes, T * H] of a round, without the host."""
        assert self._taps is not None
        self._taps.index_copy_(1, self.place, taps.unsqueeze(1))
        self.place += 1

    def take(self) -> Iterator[torch.Tensor]:
        """All that waits, in parts [lanes, n, T * H] of few sizes n."""
        assert self._taps is not None
        start, number = 0, self.number
        self.number = 0
        self.place.zero_()
        while start < number:
            size = 1 << (number - start).bit_length() - 1
            yield self._taps[:, start : start + size]
            start += size
