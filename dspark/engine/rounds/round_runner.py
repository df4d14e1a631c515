"""The interface of a round, host- or device-driven, and its outcome."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from dspark.config import EngineConfig
from dspark.engine.request import ActiveRequest
from dspark.engine.rounds.finished_round import RoundObserver
from dspark.engine.rounds.page_room import PageRoom
from dspark.events import LoadProgress, TokenLogprobs
from dspark.targets.base import Target


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request's result of a round; its caches hold the accepted tokens."""

    active: ActiveRequest
    draft: tuple[int, ...]
    confidence: tuple[float, ...] | None
    verified: int
    accepted: int
    next_id: int
    draft_seconds: float
    verify_seconds: float
    seconds: float
    logprobs: Sequence[TokenLogprobs] | None = None  # of the accepted drafts and the next token
    is_parked: bool = False
    draft_cost: float = 0.0  # if parked, as in Round
    draft_tokens: float = 0.0
    expert_reads: int = 0  # of the pass, as in Round
    expert_far: int = 0
    expert_bytes: int = 0
    accept_seconds: float = 0.0
    draft_probs: tuple[float, ...] | None = None  # as in Round
    target_probs: tuple[float, ...] | None = None


class RoundRunner(Protocol):
    """`capacity`: maximum number of concurrent requests; `room`: of their caches; `observer`: who
    is told of rounds."""

    capacity: int
    room: PageRoom
    observer: RoundObserver

    def take_prompt(self, active: ActiveRequest, ids: torch.Tensor, taps: torch.Tensor) -> None:
        """The next part of its prompt, ids [n] and taps [n, T * H], for its drafter, if it has
        one."""
        ...

    def settle(self, active: ActiveRequest) -> None:
        """Make its drafter's cache, with its backlog, as long as its target's, before they are
        kept."""
        ...

    def forget(self) -> None:
        """Drop rounds that were not read; they begin anew from what was."""
        ...

    def warm_up(self) -> Iterator[LoadProgress]:
        """Compile and capture ahead of the first round."""
        ...

    def advance(self, batch: Sequence[ActiveRequest]) -> list[Outcome]:
        """One round for each request; none for requests not in the round that was read."""
        ...


def capacity_of(target: Target, num_rows: int, config: EngineConfig) -> int:
    """Groups of requests that may share a pass, each with up to `num_rows`."""
    if not target.spec.batches:
        return 1
    limit = target.spec.max_rows
    return (
        config.max_requests
        if limit is None
        else max(1, min(config.max_requests, limit // num_rows))
    )


def context_left(target: Target, active: ActiveRequest) -> int:
    """Number of drafts that still fit in the context after the anchor."""
    return target.spec.context_limit - target.length(active.slot) - 1
