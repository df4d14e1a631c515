"""Places in a server's queue: taken before an answer begins, given back when it has ended."""


class QueuePlaces:
    """At most `most` are taken at once. For one thread, the event loop's."""

    def __init__(self, most: int) -> None:
        self.most, self._num_taken = most, 0

    def take(self, count: int) -> "TakenPlaces | None":
        """None if there are too few."""
        if self._num_taken + count > self.most:
            return None
        return TakenPlaces(self, count)

    def add(self, count: int) -> None:
        self._num_taken += count


class TakenPlaces:
    """Of one answer."""

    def __init__(self, places: QueuePlaces, count: int) -> None:
        self._places, self._count = places, count
        places.add(count)

    def give_back(self) -> None:
        """May be called again: they are given back once."""
        count, self._count = self._count, 0
        self._places.add(-count)
