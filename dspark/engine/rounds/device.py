"""Rounds driven by the device: round N+1 is launched before round N is read back.

A round never depends on anything the host learns later. Late information can waste one round, whose
tokens are discarded; it cannot change one.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from dspark.config import EngineConfig
from dspark.drafters.base import DeviceDrafter
from dspark.engine.request import ActiveRequest
from dspark.engine.rounds.cuda_graph import (
    GraphedCall,
    GraphPool,
    Moment,
    graph_pool,
    pinned_like,
)
from dspark.engine.rounds.device_batch import Lanes, Plan
from dspark.engine.rounds.finished_round import FinishedRound, RoundObserver
from dspark.engine.rounds.page_room import FixedPageRoom, PageRoom, page_count, page_counts
from dspark.engine.rounds.round_runner import Outcome, capacity_of
from dspark.engine.schedule.parking import Parking
from dspark.engine.schedule.policies import Scheduler
from dspark.engine.schedule.sps_watch import SpsWatch
from dspark.errors import BrokenLogitsError
from dspark.events import LoadProgress
from dspark.kvcache.caches import MAX_VERIFY_ROWS, PagedCache
from dspark.targets.base import DeviceTarget
from dspark_kernels.backend import next_power_of_2

TILE_ROWS = 16  # up to this many rows cost the same as one
MOST_IN_FLIGHT = 2  # rounds that are launched and not read yet


@dataclass(frozen=True, slots=True)
class _InFlightRound:
    """A launched round. `readback` has arrived at the host once `ended` has passed."""

    batch: tuple[ActiveRequest, ...]
    plan: Plan
    readback: torch.Tensor
    started: Moment
    drafted: Moment
    ended: Moment


class _Calls:
    """Both halves of a round of one shape. The second reads the buffers that the first writes."""

    def __init__(self, lanes: Lanes, plan: Plan, pool: GraphPool | None) -> None:
        self._lanes, self._plan, self._is_captured = lanes, plan, pool is not None
        self._draft = GraphedCall(partial(lanes.draft, plan), (), pool)
        self._finish = GraphedCall(self._finish_drafted, lanes.state, pool)
        self._drafted = lanes.no_draft
        self._host_buffers: deque[torch.Tensor] = deque()  # page-locked, one a round in flight

    def draft(self) -> None:
        if self._plan.num_drafts:
            self._drafted = self._draft()

    def finish(self) -> torch.Tensor:
        """The readback, which the next call overwrites."""
        return self._finish()

    def to_host(self, readback: torch.Tensor) -> torch.Tensor:
        """Its copy, which the call after the next overwrites. Nobody waits for it here."""
        if not self._is_captured:
            return readback
        if not self._host_buffers:
            for _ in range(MOST_IN_FLIGHT):
                self._host_buffers.append(pinned_like(readback))
        self._host_buffers.rotate()
        return self._host_buffers[0].copy_(readback, non_blocking=True)

    def _finish_drafted(self) -> torch.Tensor:
        return self._lanes.finish(self._drafted, self._plan)


class DeviceRounds:
    """Rounds of a paged target, with a paged drafter or none."""

    def __init__(
        self,
        target: DeviceTarget,
        cache: PagedCache,
        drafter: DeviceDrafter | None,
        scheduler: Scheduler,
        config: EngineConfig,
        parking: Parking | None = None,
        sps_watch: SpsWatch | None = None,
    ) -> None:
        """`cache` is the target's."""
        self._parking, self.observer = parking, RoundObserver(parking, sps_watch)
        self._parked: tuple[Lanes, int] | None = None  # whose taps wait, with the pages to read
        self._target, self._cache, self._drafter = target, cache, drafter
        self._scheduler, self._device = scheduler, target.device
        self._block_size = drafter.block_size if drafter is not None else 0
        rows = 1 + max(self._block_size, drafter.block_rows if drafter is not None else 0)
        self.capacity = capacity_of(target, rows, config)
        # a round not read yet, a wasted one, and the rows of both
        self._slack = 2 * rows + 1
        self._caches = [self._cache] if drafter is None else [self._cache, drafter.cache]
        leaves_room = drafter is None and bool(target.tap_layers)
        limits = (config, self.capacity, self._slack)
        room = FixedPageRoom(target, self._caches, *limits, leaves_room=leaves_room)
        self.room: PageRoom = room
        self.capacity = room.capacity
        self._scratch = (self._cache.scratch, None if drafter is None else drafter.cache.scratch)
        self._pool = graph_pool(self._device)
        self._lanes: dict[int, Lanes] = {}
        self._calls: dict[tuple[int, Plan], _Calls] = {}
        self._sent: deque[_InFlightRound] = deque()
        self._survival: list[list[float]] = []  # of each lane, in the last round read back

    # -- rounds -----------------------------------------------------------------------------------

    def take_prompt(self, active: ActiveRequest, ids: torch.Tensor, taps: torch.Tensor) -> None:
        if self._drafter is not None and active.draft_slot is not None:
            self._drafter.extend([active.draft_slot], [ids], [taps])

    def settle(self, active: ActiveRequest) -> None:
        self._catch_up()

    def forget(self) -> None:
        self._sent.clear()
        self._catch_up()

    @torch.inference_mode()
    def advance(self, batch: Sequence[ActiveRequest]) -> list[Outcome]:
        batch = tuple(batch)
        if self._sent and not set(self._sent[-1].batch) & set(batch):
            self._sent.clear()  # a wasted round of finished requests
        if self._sent and self._sent[-1].batch != batch:
            return self._read(batch)
        if not self._sent:
            self._catch_up()
            self._lanes_for(batch).load_requests(batch)
            self._survival = []
        while len(self._sent) < MOST_IN_FLIGHT:
            self._send(batch)
        return self._read(batch)

    @torch.inference_mode()
    def warm_up(self) -> Iterator[LoadProgress]:
        lanes = self._lanes_of(1)
        lanes.load_requests(())
        counts = sorted({0, self._block_size})
        # every plan of one request, so that nothing is captured in the middle of an answer
        pages = page_counts(self._cache)
        plans = [Plan(count, number) for count in counts for number in pages]
        if self._parking is not None:
            lanes.waiting.prepare()
            plans += [Plan(0, number, is_parked=True) for number in pages]
        for done, plan in enumerate(plans):
            yield LoadProgress("preparing the device", done, len(plans))
            self._launch(lanes, plan)
        self._warm_prefill()

    def _warm_prefill(self) -> None:
        slot = self._cache.open()
        size = min(MAX_VERIFY_ROWS + 1, self._target.spec.context_limit)
        ids = torch.zeros(size, device=self._device, dtype=torch.int64)
        taps = self._target.prefill(slot, ids).taps
        if self._drafter is not None:
            draft_slot = self._drafter.open()
            self._drafter.extend([draft_slot], [ids], [taps])
            self._drafter.close(draft_slot)
        slot.close()

    def _send(self, batch: tuple[ActiveRequest, ...]) -> None:
        """Launch one more round; returns before the device has finished it."""
        lanes = self._lanes_for(batch)
        # maximum lengths when this round begins: the previous one is not read yet
        longest = max(active.slot.length for active in batch) + self._slack
        is_parked, num_pages = self._is_parked(batch), page_count(self._cache, longest)
        if not is_parked or lanes.waiting.is_full:
            self._catch_up()
        if is_parked:
            lanes.waiting.prepare()
            self._parked = lanes, num_pages
        num_drafts = 0 if is_parked else self._num_drafts(batch, lanes)
        plan = Plan(num_drafts, num_pages, is_parked)
        started, readback, drafted = self._launch(lanes, plan)
        lanes.waiting.number += is_parked
        self._sent.append(
            _InFlightRound(batch, plan, readback, started, drafted, Moment(self._device))
        )

    def _launch(self, lanes: Lanes, plan: Plan) -> tuple[Moment, torch.Tensor, Moment]:
        calls = self._calls_of(lanes, plan)
        started = Moment(self._device)
        calls.draft()
        drafted = Moment(self._device)
        return started, calls.to_host(calls.finish()), drafted

    def _is_parked(self, batch: tuple[ActiveRequest, ...]) -> bool:
        """Decided from rounds that were read."""
        if self._parking is None or all(active.draft_slot is None for active in batch):
            return False
        return not self._parking.wants_drafts(len(batch))

    @torch.inference_mode()
    def _catch_up(self) -> None:
        """Launches what makes the drafter's caches as long as the target's."""
        if self._parked is not None:
            lanes, num_pages = self._parked
            self._parked = None
            lanes.catch_up(num_pages)

    def _read(self, batch: tuple[ActiveRequest, ...]) -> list[Outcome]:
        """Reads the oldest launched round; results of other requests are discarded."""
        sent = self._sent.popleft()
        sent.ended.wait()
        times = (
            sent.drafted.since(sent.started),
            sent.ended.since(sent.drafted),
            sent.ended.since(sent.started),
        )
        count = self._block_size if sent.plan.num_drafts else 0
        facts = sent.readback[: len(sent.batch)]
        if any(row[0] < 0 and each in batch for each, row in zip(sent.batch, facts, strict=True)):
            raise BrokenLogitsError()
        confidences = facts[:, 3 + count :].contiguous().view(torch.float32)[:, :count]
        self._survival = confidences.cumprod(dim=1).tolist()
        known = confidences.tolist() if self._has_confidence else [None] * len(sent.batch)
        why = self._parking.figures(len(batch)) if self._parking and sent.plan.is_parked else ()
        outcomes = []
        for active, row, draft_ids in zip(sent.batch, facts.tolist(), known, strict=True):
            if active not in batch:
                continue
            accepted, next_id, verified = row[:3]
            drafts = count if active.draft_slot is not None else 0
            readback = tuple(draft_ids) if draft_ids is not None and drafts else None
            ids = tuple(row[3 : 3 + drafts])
            active.slot.length += accepted + 1
            if active.draft_slot is not None:
                active.draft_slot.context.length += accepted + 1
            given = (active, ids, readback, verified, accepted, next_id, *times, None)
            is_parked = sent.plan.is_parked and active.draft_slot is not None
            outcomes.append(Outcome(*given, is_parked, *(why if is_parked else ())))
        if len(outcomes) == len(sent.batch) and (sent.plan.num_drafts or sent.plan.is_parked):
            self.observer.keep(_finished(outcomes, sent.plan))
        return outcomes

    @property
    def _has_confidence(self) -> bool:
        return self._drafter is not None and self._drafter.has_confidence

    def _num_drafts(self, batch: tuple[ActiveRequest, ...], lanes: Lanes) -> int:
        """Number of drafts to verify per request; decided from finished rounds, if any."""
        if all(active.draft_slot is None for active in batch):
            return 0
        whole = self._block_size
        is_cheap = lanes.num_lanes * (whole + 1) <= TILE_ROWS
        if is_cheap or not self._survival:
            return whole
        return self._scheduler.even_length(self._survival, [n for n in (1, whole // 2, whole) if n])

    # -- captured functions -----------------------------------------------------------------------

    def _lanes_for(self, batch: tuple[ActiveRequest, ...]) -> Lanes:
        return self._lanes_of(min(next_power_of_2(len(batch)), self.capacity))

    def _lanes_of(self, num_lanes: int) -> Lanes:
        if num_lanes not in self._lanes:
            arguments = (self._target, self._cache, self._drafter, self._scratch)
            self._lanes[num_lanes] = Lanes(num_lanes, *arguments, self._scheduler.threshold)
        return self._lanes[num_lanes]

    def _calls_of(self, lanes: Lanes, plan: Plan) -> _Calls:
        key = (lanes.num_lanes, plan)
        if key not in self._calls:
            self._calls[key] = _Calls(lanes, plan, self._pool)
        return self._calls[key]


def _finished(outcomes: Sequence[Outcome], plan: Plan) -> FinishedRound:
    first = outcomes[0]
    return FinishedRound(
        blocks=[(outcome.verified, outcome.accepted) for outcome in outcomes],
        rows=len(outcomes) * (plan.num_drafts + 1),
        depth=first.active.slot.length,
        has_drafts=not plan.is_parked,
        seconds=first.seconds,
        pass_seconds=first.verify_seconds,
        hides_step=True,
    )
