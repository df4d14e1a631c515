"""The interface of rounds that the engine uses, and the rounds driven by the host."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch

from dspark.config import EngineConfig
from dspark.drafters.base import Drafter, Proposals
from dspark.engine.logit_rules import LogitRules
from dspark.engine.logprobs import token_logprobs
from dspark.engine.request import ActiveRequest, Request
from dspark.engine.sampling import BatchChooser, check_sound
from dspark.engine.schedule.policies import Scheduler
from dspark.events import LoadProgress, TokenLogprobs
from dspark.targets.base import Pass, Slot, Target
from dspark_kernels import Acceptance, accept_chosen
from dspark_kernels.cpu.argmax import argmax


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


class RoundRunner(Protocol):
    """`capacity`: maximum number of concurrent requests."""

    capacity: int

    def check(self, request: Request) -> None:
        """Raises MemoryFullError for a request that does not fit even alone."""
        ...

    def has_room(self, request: Request) -> bool:
        """Whether its maximum length fits next to the running requests."""
        ...

    def reserve(self, active: ActiveRequest) -> None:
        """Reserve room for its maximum length in open caches."""
        ...

    def forget(self) -> None:
        """Called when no request is running."""
        ...

    def check_idle(self) -> None:
        """Checks, while no request is running, that no page leaked."""
        ...

    def warm_up(self) -> Iterator[LoadProgress]:
        """Compile and capture ahead of the first round."""
        ...

    def advance(self, batch: Sequence[ActiveRequest]) -> list[Outcome]:
        """One round for each request; none for requests not in the round that was read."""
        ...


@dataclass(frozen=True, slots=True)
class _Draft:
    """One request's share of a round: its draft and the number of tokens to verify."""

    ids: torch.Tensor  # [K]
    probs: torch.Tensor | None  # [K, V], None when greedy
    confidences: tuple[float, ...] | None
    length: int


class HostRounds:
    """Any target, any drafter: the host reads each draft before it continues."""

    def __init__(
        self, target: Target, drafter: Drafter | None, scheduler: Scheduler, config: EngineConfig
    ) -> None:
        self.target, self.drafter, self.scheduler = target, drafter, scheduler
        self.capacity = capacity_of(target, 1 + (drafter.block_size if drafter else 0), config)

    def check(self, request: Request) -> None:
        pass

    def has_room(self, request: Request) -> bool:
        return True

    def reserve(self, active: ActiveRequest) -> None:
        pass

    def forget(self) -> None:
        pass

    def check_idle(self) -> None:
        pass

    def warm_up(self) -> Iterator[LoadProgress]:
        return iter(())

    @torch.inference_mode()
    def advance(self, batch: Sequence[ActiveRequest]) -> list[Outcome]:
        started = time.perf_counter()
        proposals = self._propose(batch)
        drafts = self._admit(batch, proposals)
        drafted = time.perf_counter()
        verified = self._verify(batch, drafts)
        accepted = self._accept(batch, drafts, verified)
        ended = time.perf_counter()
        self._commit(batch, drafts, verified, accepted)
        times = (drafted - started, ended - drafted, time.perf_counter() - started)
        logits = verified.logits.split([draft.length + 1 for draft in drafts])
        outcomes = []
        for active, draft, rows, acceptance in zip(batch, drafts, logits, accepted, strict=True):
            ids, kept = draft.ids.tolist(), acceptance.num_accepted
            logprobs = token_logprobs(active.request, rows, [*ids[:kept], acceptance.next_id])
            facts = (active, tuple(ids), draft.confidences, draft.length, *acceptance, *times)
            outcomes.append(Outcome(*facts, logprobs))
        return outcomes

    def _propose(self, batch: Sequence[ActiveRequest]) -> Proposals | None:
        drafting = [active for active in batch if active.draft_slot is not None]
        if self.drafter is None or not drafting:
            return None
        anchors = torch.tensor([a.anchor for a in drafting], device=self.target.device)
        chooser = BatchChooser(
            [active.sampler for active in drafting],
            [self._next_place(active) for active in drafting],
            self.target.spec.vocab_size,
            [active.rules for active in drafting],
        )
        return self.drafter.propose([a.draft_slot for a in drafting], anchors, chooser)

    def _admit(self, batch: Sequence[ActiveRequest], proposals: Proposals | None) -> list[_Draft]:
        """A share for every request; empty for plain decoding."""
        empty = _Draft(torch.empty(0, dtype=torch.long, device=self.target.device), None, None, 0)
        if proposals is None:
            return [empty] * len(batch)
        drafting = [active for active in batch if active.draft_slot is not None]
        drafted = proposals.lengths or [proposals.token_ids.shape[1]] * len(drafting)
        limits = [
            min(n, room_for_drafts(self.target, active))
            for n, active in zip(drafted, drafting, strict=True)
        ]
        lengths = iter(self.scheduler.admit(proposals.confidences, limits))
        rows = iter(range(len(drafting)))
        return [
            empty if active.draft_slot is None else _draft_of(proposals, next(rows), next(lengths))
            for active in batch
        ]

    def _verify(self, batch: Sequence[ActiveRequest], drafts: list[_Draft]) -> Pass:
        blocks = [_block(active, draft) for active, draft in zip(batch, drafts, strict=True)]
        return self._run([active.slot for active in batch], blocks)

    def _run(self, slots: Sequence[Slot], blocks: Sequence[torch.Tensor]) -> Pass:
        return self.target.verify(slots, blocks)

    def _accept(
        self, batch: Sequence[ActiveRequest], drafts: list[_Draft], verified: Pass
    ) -> list[Acceptance]:
        sizes = [draft.length + 1 for draft in drafts]
        chosen = self._chosen(batch, verified.logits, sizes)
        accepted = []
        for active, draft, logits, tokens in zip(
            batch, drafts, verified.logits.split(sizes), chosen, strict=True
        ):
            ids = draft.ids[: draft.length]
            if active.rules is not None:
                accepted.append(self._accept_by_rules(active, active.rules, draft, logits))
            elif active.sampler.is_greedy:
                accepted.append(accept_chosen(ids.tolist(), tokens))
            else:
                place = self._next_place(active)
                accepted.append(active.sampler.accept(ids, draft.probs, logits, place))
            check_sound(logits[: accepted[-1].num_accepted + 1])
        return accepted

    def _accept_by_rules(
        self, active: ActiveRequest, rules: LogitRules, draft: _Draft, logits: torch.Tensor
    ) -> Acceptance:
        ids = draft.ids[: draft.length]
        adjusted = rules.adjust(logits, ids.tolist())
        return active.sampler.accept(ids, draft.probs, adjusted, self._next_place(active))

    def _chosen(
        self, batch: Sequence[ActiveRequest], logits: torch.Tensor, sizes: list[int]
    ) -> list[list[int]]:
        """The likeliest token of every row, found for all requests at once; nothing if none is
        greedy."""
        if not any(active.sampler.is_greedy for active in batch):
            return [[]] * len(batch)
        best = iter(argmax(logits).index.tolist())
        return [list(islice(best, size)) for size in sizes]

    def _next_place(self, active: ActiveRequest) -> int:
        """Place of the token after the anchor, counted from the prompt's first token."""
        return self.target.length(active.slot) + 1

    def _commit(
        self,
        batch: Sequence[ActiveRequest],
        drafts: list[_Draft],
        verified: Pass,
        accepted: list[Acceptance],
    ) -> None:
        num_rows = [acceptance.num_accepted + 1 for acceptance in accepted]
        self.target.commit([active.slot for active in batch], num_rows)
        drafting = [i for i, active in enumerate(batch) if active.draft_slot is not None]
        if self.drafter is not None and drafting:
            taps = verified.taps.split([draft.length + 1 for draft in drafts])
            self.drafter.extend(
                [batch[i].draft_slot for i in drafting],
                [_block(batch[i], drafts[i])[: num_rows[i]] for i in drafting],
                [taps[i][: num_rows[i]] for i in drafting],
            )


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


def room_for_drafts(target: Target, active: ActiveRequest) -> int:
    """Maximum number of drafts in a block after the anchor."""
    room, border = context_left(target, active), target.spec.recomputed_at
    length = target.length(active.slot)
    return room if border is None or length >= border else min(room, border - length - 1)


def _block(active: ActiveRequest, draft: _Draft) -> torch.Tensor:
    """The block to verify [1 + length]: the anchor and the admitted drafts."""
    return torch.cat([draft.ids.new_tensor([active.anchor]), draft.ids[: draft.length]])


def _draft_of(proposals: Proposals, row: int, length: int) -> _Draft:
    confidences, lengths = proposals.confidences, proposals.lengths
    ids = proposals.token_ids[row]
    return _Draft(
        ids=ids if lengths is None else ids[: lengths[row]],
        probs=proposals.probs[row],
        confidences=None if confidences is None else tuple(confidences[row].tolist()),
        length=length,
    )
