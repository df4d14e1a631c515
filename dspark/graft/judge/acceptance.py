"""Acceptance of a head in the engine: greedy answers to held-out prompts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dspark.config import StopConfig
from dspark.engine.request import Request
from dspark.events import Event, Round
from dspark.graft.judge.open_target import OpenTarget


@dataclass(frozen=True, slots=True)
class Evaluation:
    """tau counts the target's own token; accepted[k] of `rounds` rounds accepted draft k."""

    prompts: int
    rounds: int
    tau: float
    accepted: tuple[int, ...]

    @property
    def acceptance_by_position(self) -> tuple[float, ...]:
        """Share of the rounds in which all earlier drafts were accepted that also accepted this
        one."""
        before = (self.rounds, *self.accepted)  # one more than there are positions
        return tuple(a / b if b else 0.0 for a, b in zip(self.accepted, before, strict=False))


def evaluate(
    target: OpenTarget, head: Path, prompts: Sequence[tuple[int, ...]], max_tokens: int
) -> Evaluation:
    """Whole blocks are verified, so that every position is judged."""
    stop = StopConfig(max_tokens=max_tokens)
    requests = [Request(prompt, stop=stop) for prompt in prompts]
    with target.with_head(head) as session:
        return summarise(session.engine.run(requests), len(prompts))


def summarise(events: Iterable[Event], num_prompts: int) -> Evaluation:
    rounds = [event for event in events if isinstance(event, Round)]
    block_size = max((len(r.draft) for r in rounds), default=0)
    accepted = tuple(sum(r.accepted > k for r in rounds) for k in range(block_size))
    tau = 1.0 + sum(accepted) / len(rounds) if rounds else 0.0
    return Evaluation(num_prompts, len(rounds), tau, accepted)
