"""Two ways to write one answer, on one clock: whoever is behind takes the next step.

So both have run for the same time at any moment, with nothing else beside them, and what
slows the machine slows both.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

from dspark.config import SamplingConfig, StopConfig
from dspark.events import Event, Finished

if TYPE_CHECKING:  # a screen shows races before torch is loaded
    from dspark.engine.session import Session


@dataclass(frozen=True, slots=True)
class Runner:
    """`plain` leaves the session's drafter out. Each has a session of its own."""

    name: str
    session: "Session"
    plain: bool = False


@dataclass(frozen=True, slots=True)
class RaceStep:
    """An event of one runner, whose own clock is at `seconds` now."""

    runner: int
    seconds: float
    event: Event


@dataclass(frozen=True, slots=True)
class Lap:
    """One runner at the end. `seconds` and those of its stats are of its own turns alone."""

    name: str
    seconds: float
    finished: Finished

    @property
    def tokens_per_second(self) -> float:
        """Of the whole answer, reading the prompt included."""
        return self.finished.stats.new_tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class RaceResult:
    """`is_identical` is None where sampling without a seed lets the texts differ."""

    laps: tuple[Lap, ...]
    is_identical: bool | None

    @property
    def speedup(self) -> float | None:
        """Tokens a second of the last runner over those of the first; None for an answer without
        tokens."""
        rates = [lap.tokens_per_second for lap in self.laps]
        return rates[-1] / rates[0] if rates[0] and rates[-1] else None

    @property
    def winner(self) -> Lap | None:
        """Who was done first; None if both took the same hundredths of a second."""
        first, second, *_ = sorted(self.laps, key=lambda lap: lap.seconds)
        return None if f"{first.seconds:.2f}" == f"{second.seconds:.2f}" else first


@dataclass
class _Running:
    name: str
    events: Iterator[Event]
    seconds: float = 0.0
    prefill_seconds: float | None = None
    finished: Finished | None = None

    def step(self) -> Event:
        start = perf_counter()
        event = next(self.events)
        self.seconds += perf_counter() - start
        if isinstance(event, Finished):
            event = self.finished = self._on_own_clock(event)
        elif self.prefill_seconds is None and event.pieces:
            self.prefill_seconds = self.seconds
        return event

    def _on_own_clock(self, event: Finished) -> Finished:
        """The engine's clock has run through the turns of the other."""
        prefill = self.seconds if self.prefill_seconds is None else self.prefill_seconds
        decode = self.seconds - prefill
        stats = replace(event.stats, prefill_seconds=prefill, decode_seconds=decode)
        return replace(event, stats=stats)


def race(
    runners: Sequence[Runner],
    prompt_ids: Sequence[int],
    sampling: SamplingConfig = SamplingConfig(),
    stop: StopConfig = StopConfig(),
) -> Generator[RaceStep, None, RaceResult]:
    """Yields every event of every runner."""
    running = [
        _Running(each.name, each.session.generate(prompt_ids, sampling, stop, plain=each.plain))
        for each in runners
    ]
    while unfinished := [each for each in running if each.finished is None]:
        behind = min(unfinished, key=lambda each: each.seconds)
        event = behind.step()
        yield RaceStep(running.index(behind), behind.seconds, event)
    laps = tuple(Lap(each.name, each.seconds, each.finished) for each in running if each.finished)
    texts = {lap.finished.token_ids for lap in laps}
    is_comparable = sampling.acceptance != "rejection"
    return RaceResult(laps, len(texts) == 1 if is_comparable else None)
