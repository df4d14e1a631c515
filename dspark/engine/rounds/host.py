"""Rounds that the host drives."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from dspark.config import EngineConfig
from dspark.drafters.base import Drafter, JoiningDrafter, Proposals
from dspark.engine.draft_backlog import MOST_BYTES, MOST_KEPT_BYTES, TapBlocks, catch_up
from dspark.engine.draft_probs import target_probs
from dspark.engine.logprobs import token_logprobs
from dspark.engine.request import ActiveRequest
from dspark.engine.rounds.finished_round import FinishedRound, RoundObserver
from dspark.engine.rounds.page_room import growing_room
from dspark.engine.rounds.round_runner import Outcome, capacity_of, context_left
from dspark.engine.sampling import BatchChooser, CoupledBlock, accept_coupled
from dspark.engine.schedule.parking import Parking
from dspark.engine.schedule.policies import Scheduler
from dspark.engine.schedule.sps_watch import SpsWatch
from dspark.errors import BrokenLogitsError
from dspark.events import LoadProgress
from dspark.targets.base import KernelTarget, Pass, Slot, Target
from dspark.targets.expert_use import RoutesExperts
from dspark_kernels import Acceptance, accept_chosen
from dspark_kernels.cpu.argmax import argmax
from dspark_kernels.cpu.decoder_pass import MAX_ROWS


@dataclass(frozen=True, slots=True)
class _Draft:
    """One request's share of a round: its draft and the number of tokens to verify."""

    ids: tuple[int, ...]
    probs: torch.Tensor | None  # [K, V], None when greedy
    confidences: tuple[float, ...] | None
    length: int
    chosen_probs: tuple[float, ...] | None = None  # where asked for


NO_DRAFT = _Draft((), None, None, 0)


class HostRounds:
    """Any target, any drafter: the host reads each draft before it continues."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        scheduler: Scheduler,
        config: EngineConfig,
        parking: Parking | None = None,
        sps_watch: SpsWatch | None = None,
    ) -> None:
        self.target, self.drafter, self.scheduler = target, drafter, scheduler
        self._parking, self.observer = parking, RoundObserver(parking, sps_watch)
        self._routes = target if isinstance(target, RoutesExperts) else None
        self._kernels = target if isinstance(target, KernelTarget) else None
        can_join = self._kernels is not None and isinstance(drafter, JoiningDrafter)
        self._joining = drafter if can_join and isinstance(drafter, JoiningDrafter) else None
        self._waiting_taps = TapBlocks()
        self._caught_up_seconds = 0.0  # of the round under way
        self._num_requests = 1  # of the last round
        self.capacity = capacity_of(target, 1 + (drafter.block_size if drafter else 0), config)
        self.room = growing_room(target, drafter, config, self.capacity)

    @torch.inference_mode()
    def take_prompt(self, active: ActiveRequest, ids: torch.Tensor, taps: torch.Tensor) -> None:
        """While drafting is parked, it waits as what rounds commit does."""
        if self.drafter is None or active.draft_slot is None:
            return
        is_parked = self._parking is not None and self._parking.is_parked(self._num_requests)
        if active.backlog or (is_parked and taps.nbytes <= MOST_KEPT_BYTES):
            active.backlog.add(ids.tolist(), taps, 0, self._waiting_taps)
            self.settle(active)
        else:
            self.drafter.extend([active.draft_slot], [ids], [taps])

    @torch.inference_mode()
    def settle(self, active: ActiveRequest) -> None:
        if active.backlog.num_bytes > MOST_KEPT_BYTES:
            self._catch_up([active])

    def forget(self) -> None:
        pass

    def warm_up(self) -> Iterator[LoadProgress]:
        return iter(())

    @torch.inference_mode()
    def advance(self, batch: Sequence[ActiveRequest]) -> list[Outcome]:
        self._num_requests = len(batch)
        can_draft = any(active.draft_slot is not None for active in batch)
        wants_drafts = self._parking is None or self._parking.wants_drafts(len(batch))
        outcomes = self._round(batch, can_draft and wants_drafts)
        if can_draft:
            self.observer.keep(self._finished(outcomes, has_drafts=wants_drafts))
        return outcomes

    def _finished(self, outcomes: Sequence[Outcome], *, has_drafts: bool) -> FinishedRound:
        first = outcomes[0]
        return FinishedRound(
            blocks=[(outcome.verified, outcome.accepted) for outcome in outcomes],
            rows=sum(outcome.verified + 1 for outcome in outcomes),
            depth=_mean_length(self.target, [outcome.active for outcome in outcomes]),
            has_drafts=has_drafts,
            seconds=first.seconds,
            pass_seconds=first.verify_seconds + first.accept_seconds,
            caught_up=self._caught_up_seconds,
            use=None if self._routes is None else self._routes.expert_use(),
        )

    def _round(self, batch: Sequence[ActiveRequest], has_drafts: bool) -> list[Outcome]:
        started, self._caught_up_seconds = time.perf_counter(), 0.0
        proposals = self._propose(batch) if has_drafts else None
        drafts = self._admit(batch, proposals)
        drafted = time.perf_counter()
        blocks = [(a.anchor, *d.ids[: d.length]) for a, d in zip(batch, drafts, strict=True)]
        is_joined = has_drafts and self._can_join(batch, blocks)
        verified = self._verify(batch, blocks, is_joined=is_joined)
        best, sound = verified.largest or [column.tolist() for column in argmax(verified.logits)]
        checked = time.perf_counter()  # a device is done only now
        accepted = self._accept(batch, drafts, blocks, verified, best, sound)
        ended = time.perf_counter()
        committed = [block[: a.num_accepted + 1] for block, a in zip(blocks, accepted, strict=True)]
        self.target.commit([active.slot for active in batch], [len(ids) for ids in committed])
        if is_joined and self._joining is not None:
            self._joining.keep([active.draft_slot for active in batch], committed)
        else:
            self._hand_on(batch, blocks, committed, verified.taps, has_drafts=has_drafts)
        times = (
            drafted - started - self._caught_up_seconds,
            checked - drafted,
            time.perf_counter() - started,
        )
        why: tuple[float, float] = (0.0, 0.0)
        if self._parking is not None and not has_drafts:
            why = self._parking.figures(len(batch))
        use = None if self._routes is None else self._routes.expert_use()
        reads, far = (0, 0) if use is None else (use.reads, use.far)
        size = 0 if self._routes is None else self._routes.expert_shape.num_bytes
        outcomes, start = [], 0
        for active, draft, acceptance in zip(batch, drafts, accepted, strict=True):
            end = start + draft.length + 1
            logprobs = of_drafts = None
            if active.request.needs_host:  # a view costs what a small round can feel
                rows = verified.logits[start:end]
                tokens = [*draft.ids[: acceptance.num_accepted], acceptance.next_id]
                logprobs = token_logprobs(active.request, rows, tokens)
                of_drafts = target_probs(active, rows, draft.ids)
            start = end
            facts = (active, draft.ids, draft.confidences, draft.length, *acceptance, *times)
            is_parked = not has_drafts and active.draft_slot is not None
            told = why if is_parked else (0.0, 0.0)
            outcomes.append(
                Outcome(
                    *facts,
                    logprobs,
                    is_parked,
                    *told,
                    expert_reads=reads,
                    expert_far=far,
                    expert_bytes=size,
                    accept_seconds=ended - checked,
                    draft_probs=draft.chosen_probs,
                    target_probs=of_drafts,
                )
            )
        return outcomes

    def _propose(self, batch: Sequence[ActiveRequest]) -> Proposals | None:
        drafting = [active for active in batch if active.draft_slot is not None]
        if self.drafter is None or not drafting:
            return None
        started = time.perf_counter()
        self._catch_up(drafting)
        self._caught_up_seconds = time.perf_counter() - started
        anchors = torch.tensor([a.anchor for a in drafting], device=self.target.device)
        chooser = BatchChooser(
            [active.sampler for active in drafting],
            [self._next_place(active) for active in drafting],
            self.target.spec.vocab_size,
            [active.rules for active in drafting],
            [active.request.tells_probs for active in drafting],
        )
        proposals = self.drafter.propose([a.draft_slot for a in drafting], anchors, chooser)
        if proposals.chosen_probs is None:
            return replace(proposals, chosen_probs=chooser.chosen_probs)
        return proposals

    def _admit(self, batch: Sequence[ActiveRequest], proposals: Proposals | None) -> list[_Draft]:
        """A share for every request; empty for plain decoding."""
        if proposals is None:
            return [NO_DRAFT] * len(batch)
        drafting = [active for active in batch if active.draft_slot is not None]
        drafted = proposals.lengths or [proposals.token_ids.shape[1]] * len(drafting)
        limits = [
            min(n, _room_for_drafts(self.target, active))
            for n, active in zip(drafted, drafting, strict=True)
        ]
        depth = _mean_length(self.target, batch)
        lengths = self.scheduler.admit(proposals.confidences, limits, depth)
        drafts = iter(_drafts_of(proposals, lengths))
        return [NO_DRAFT if active.draft_slot is None else next(drafts) for active in batch]

    def _can_join(self, batch: Sequence[ActiveRequest], blocks: Sequence[Sequence[int]]) -> bool:
        """Whether the drafter takes in the taps of all rows while they are verified."""
        is_possible = self._joining is not None and sum(map(len, blocks)) <= MAX_ROWS
        return is_possible and all(active.draft_slot is not None for active in batch)

    def _verify(
        self,
        batch: Sequence[ActiveRequest],
        blocks: Sequence[Sequence[int]],
        *,
        is_joined: bool,
    ) -> Pass:
        """Of each block [1 + length]: the anchor and the admitted drafts."""
        slots, target, drafter = [active.slot for active in batch], self._kernels, self._joining
        if target is None:
            ids = [token for block in blocks for token in block]
            rows = torch.tensor(ids, device=self.target.device)
            return self._run(slots, rows.split([len(block) for block in blocks]))
        if not is_joined or drafter is None:
            return target.verify_ids(slots, blocks)
        draft_slots, sizes = [active.draft_slot for active in batch], [len(b) for b in blocks]
        return target.verify_ids(
            slots, blocks, lambda taps: drafter.job_of_taps(draft_slots, sizes, taps)
        )

    def _run(self, slots: Sequence[Slot], blocks: Sequence[torch.Tensor]) -> Pass:
        return self.target.verify(slots, blocks)

    def _accept(
        self,
        batch: Sequence[ActiveRequest],
        drafts: Sequence[_Draft],
        blocks: Sequence[Sequence[int]],
        verified: Pass,
        best: Sequence[int],
        sound: Sequence[int],
    ) -> list[Acceptance]:
        """`best` token of each row. Raises BrokenLogitsError if a row that a token comes from is
        not `sound`, no distribution."""
        accepted: dict[int, Acceptance] = {}
        coupled: dict[int, CoupledBlock] = {}
        starts = list(accumulate(map(len, blocks), initial=0))
        for at, (active, draft) in enumerate(zip(batch, drafts, strict=True)):
            rows = slice(starts[at], starts[at + 1])
            ids = draft.ids[: draft.length]
            if active.rules is None and active.sampler.is_greedy:
                accepted[at] = accept_chosen(ids, best[rows])
                continue
            logits, place = verified.logits[rows], self._next_place(active)
            if active.rules is not None:
                logits = active.rules.adjust(logits, ids)
            is_plain = not ids and self._kernels is not None  # then nothing is to be rejected
            if active.sampler.is_coupled or (is_plain and not active.sampler.is_greedy):
                coupled[at] = CoupledBlock(active.sampler, ids, logits, place)
                continue
            of_block = torch.tensor(ids, dtype=torch.long, device=logits.device)
            accepted[at] = active.sampler.accept(of_block, draft.probs, logits, place)
        if coupled:
            blocks_of = accept_coupled(list(coupled.values()))
            accepted.update(zip(coupled, blocks_of, strict=True))
        for at, start in enumerate(starts[:-1]):
            if not all(sound[start : start + accepted[at].num_accepted + 1]):
                raise BrokenLogitsError()
        return [accepted[at] for at in range(len(batch))]

    def _next_place(self, active: ActiveRequest) -> int:
        """Place of the token after the anchor, counted from the prompt's first token."""
        return self.target.length(active.slot) + 1

    def _hand_on(
        self,
        batch: Sequence[ActiveRequest],
        blocks: Sequence[Sequence[int]],
        committed: Sequence[Sequence[int]],
        taps: torch.Tensor,
        *,
        has_drafts: bool,
    ) -> None:
        """Committed tokens with their taps, to the drafter or to those that wait for it."""
        if self.drafter is None or all(active.draft_slot is None for active in batch):
            return
        starts = accumulate(map(len, blocks), initial=0)
        shares = [
            (active, ids, start)
            for active, ids, start in zip(batch, committed, starts, strict=False)
            if active.draft_slot is not None
        ]
        if has_drafts:  # nothing waits
            slots = [active.draft_slot for active, *_ in shares]
            tokens = [torch.tensor(ids, device=taps.device) for _, ids, _ in shares]
            rows = [taps[start : start + len(ids)] for _, ids, start in shares]
            self.drafter.extend(slots, tokens, rows)
            return
        for active, ids, start in shares:
            active.backlog.add(ids, taps, start, self._waiting_taps)
        most = MOST_BYTES // len(shares)
        full = [active for active, *_ in shares if active.backlog.num_bytes > most]
        if full:
            self._catch_up(full)

    def _catch_up(self, batch: Sequence[ActiveRequest]) -> None:
        """What was committed without drafts goes into the drafter's cache."""
        if self.drafter is not None:
            slots = [active.draft_slot for active in batch]
            catch_up(self.drafter, slots, [active.backlog for active in batch])


def _mean_length(target: Target, batch: Sequence[ActiveRequest]) -> int:
    """Tokens of context per request."""
    return sum(target.length(active.slot) for active in batch) // len(batch)


def _room_for_drafts(target: Target, active: ActiveRequest) -> int:
    """Maximum number of drafts in a block after the anchor."""
    room, border = context_left(target, active), target.spec.recomputed_at
    length = target.length(active.slot)
    return room if border is None or length >= border else min(room, border - length - 1)


def _drafts_of(proposals: Proposals, lengths: Sequence[int]) -> list[_Draft]:
    """With the number of tokens to verify of each."""
    ids, confidences = proposals.token_ids.tolist(), proposals.confidences
    found = [None] * len(ids) if confidences is None else map(tuple, confidences.tolist())
    sizes = proposals.lengths or [len(row) for row in ids]
    told = proposals.chosen_probs or [()] * len(ids)
    return [
        _Draft(tuple(row[:size]), probs, confidence, length, tuple(chosen) or None)
        for row, size, probs, confidence, length, chosen in zip(
            ids, sizes, proposals.probs, found, lengths, told, strict=True
        )
    ]
