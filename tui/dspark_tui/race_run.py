"""A race on a thread, for a screen that looks at it now and then."""

import threading

from dspark.bench.race import RaceResult, RaceStep
from dspark.chat.backend import OpenRace
from dspark.errors import DSparkError
from dspark_tui.messages import as_dspark_error


class RaceRun:
    """`outcome` is None until the race has ended by itself."""

    def __init__(self, race: OpenRace) -> None:
        self.names = race.names
        self.outcome: RaceResult | DSparkError | None = None
        self._steps = race.steps
        self._coming: list[RaceStep] = []
        self._coming_lock = threading.Lock()
        self._is_left = threading.Event()

    def run(self) -> None:
        """On a thread of its own, until it ends or is left."""
        try:
            self.outcome = self._follow()
        except Exception as error:
            self.outcome = as_dspark_error(error)
        finally:
            self._steps.close()

    def _follow(self) -> RaceResult | None:
        while not self._is_left.is_set():
            try:
                step = next(self._steps)
            except StopIteration as end:
                result: RaceResult = end.value
                return result
            with self._coming_lock:
                self._coming.append(step)
        return None

    def leave(self) -> None:
        """It ends after the step under way."""
        self._is_left.set()

    def new_steps(self) -> list[RaceStep]:
        """Since the last call."""
        with self._coming_lock:
            coming, self._coming = self._coming, []
        return coming
