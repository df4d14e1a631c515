"""A race for the eye: what each runner has written, how fast, and the verdict."""

from dataclasses import dataclass

from dspark.bench.race import RaceResult, RaceStep
from dspark.chat.token_spans import Mark, marks_of
from dspark.events import DecodeStats, Finished


@dataclass
class Lane:
    """One runner so far."""

    name: str
    tokens: int = 0
    seconds: float = 0.0
    is_finished: bool = False

    def take(self, step: RaceStep) -> list[Mark]:
        """What the step adds to the text."""
        event, self.seconds = step.event, step.seconds
        if isinstance(event, Finished):
            self.is_finished, self.tokens = True, event.stats.new_tokens
        else:
            self.tokens += len(event.pieces)
        return marks_of(event)

    @property
    def figures(self) -> str:
        rate = self.tokens / self.seconds if self.seconds > 0 else 0.0
        took = "took " if self.is_finished else ""
        return f"{rate:.1f} tok/s · {took}{self.seconds:.2f} s"


def verdict(result: RaceResult) -> str:
    """One line: who was first and by how much, and whether the text is the same."""
    first, last = result.laps[0].name, result.laps[-1].name
    words = {True: "the same text", False: "DIFFERENT TEXT", None: "sampled without a seed"}
    said = [f"{result.winner.name} was first" if result.winner else "a dead heat"]
    if result.speedup is not None:
        said.append(
            f"{last} wrote {result.speedup:.2f}× as many tokens a second as {first}, "
            "reading the prompt included"
        )
    parked = [lap.name for lap in result.laps if _never_drafted(lap.finished.stats)]
    said += [f"{name} drafted nothing: drafts would not pay here" for name in parked]
    return "; ".join([*said, words[result.is_identical]])


def _never_drafted(stats: DecodeStats) -> bool:
    return stats.parked > 0 and not stats.drafted
