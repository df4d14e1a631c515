"""A race for the eye: what each runner has written, how fast, and the verdict."""

from dataclasses import dataclass

from dspark.bench.race import RaceResult, RaceStep
from dspark.chat.token_spans import Mark, marks_of
from dspark.events import Finished


@dataclass
class Lane:
    """One runner so far."""

    name: str
    tokens: int = 0
    seconds: float = 0.0
    first_seconds: float = 0.0
    is_finished: bool = False

    def take(self, step: RaceStep) -> list[Mark]:
        """What the step adds to the text."""
        event, self.seconds = step.event, step.seconds
        if isinstance(event, Finished):
            self.is_finished = True
        else:
            if not self.tokens:
                self.first_seconds = self.seconds
            self.tokens += len(event.pieces)
        return marks_of(event)

    @property
    def figures(self) -> str:
        decoding = self.seconds - self.first_seconds
        rate = (self.tokens - 1) / decoding if self.tokens > 1 and decoding > 0 else 0.0
        done = "done in " if self.is_finished else ""
        return f"{rate:.1f} tok/s · {done}{self.seconds:.1f} s"


def verdict(result: RaceResult) -> str:
    """One line: how much faster, and whether the text is the same."""
    first, last = result.laps[0].name, result.laps[-1].name
    words = {True: "the same text", False: "DIFFERENT TEXT", None: "sampled without a seed"}
    speed = (
        "" if result.speedup is None else f"{last} is {result.speedup:.2f}× as fast as {first}; "
    )
    return f"{speed}{words[result.is_identical]}"
