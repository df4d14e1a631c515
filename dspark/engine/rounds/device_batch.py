"""The state of a fixed number of requests on the device, and the two halves of their round.

All addresses are fixed and the host reads nothing, so a round can be captured.
"""

from dataclasses import dataclass

import torch

from dspark.drafters.base import DeviceDrafter
from dspark.engine.request import ActiveRequest
from dspark.engine.rounds.waiting_taps import WaitingTaps
from dspark.kvcache.caches import PagedCache
from dspark.kvcache.row_pool import KVSlot
from dspark.targets.base import DeviceTarget
from dspark_kernels import (
    DraftedBlock,
    Filters,
    LaneState,
    PagedRows,
    Races,
    accept_block,
    end_round,
    plan_round,
)

MASKED_LOGIT = -3e4  # below any logit, and finite in every format: a whole block may be masked


@dataclass(frozen=True, slots=True)
class Plan:
    """A round's shape: number of drafts to verify (0: plain) and pages to read. If parked, what the
    drafter would take in waits."""

    num_drafts: int
    num_pages: int
    is_parked: bool = False


class Lanes:
    """Up to as many requests as lanes; idle lanes work on scratch pages."""

    def __init__(
        self,
        num_lanes: int,
        target: DeviceTarget,
        target_cache: PagedCache,
        drafter: DeviceDrafter | None,
        scratch: tuple[KVSlot, KVSlot | None],
        threshold: float | None,
    ) -> None:
        self.num_lanes, self._threshold = num_lanes, threshold
        self._target, self._cache, self._drafter = target, target_cache, drafter
        self._scratch = scratch
        self.block_size = drafter.block_size if drafter is not None else 0
        device = target.device

        def whole(dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(num_lanes, device=device, dtype=dtype)

        self._requests = LaneState(
            anchors=whole(),
            lengths=whole(),
            noise_seeds=whole(),
            seeds=whole(),
            is_seeded=whole(torch.bool),
            is_live=whole(torch.bool),
            most_drafts=whole(),
        )
        self._slots, self._draft_slots = whole(torch.int32), whole(torch.int32)
        self._filters = Filters(
            whole(torch.float32), whole(torch.int32), whole(torch.float32).fill_(1.0)
        )
        self._row_starts: dict[int, torch.Tensor] = {}  # by the rows of a request
        self.no_draft = DraftedBlock(
            torch.zeros(num_lanes, 1, device=device, dtype=torch.int64),
            torch.zeros(num_lanes, 1, target.spec.vocab_size, device=device),
            torch.zeros(num_lanes, 1, device=device),
            None,
        )
        vocabulary = None if drafter is None else drafter.draft_vocabulary
        self._vocabulary = vocabulary
        self._logit_mask = (
            None
            if vocabulary is None
            else torch.zeros(num_lanes, target.spec.vocab_size, device=device, dtype=target.dtype)
        )
        mask = () if self._logit_mask is None else (self._logit_mask,)
        width = len(target.tap_layers) * target.spec.hidden_size
        self.waiting = WaitingTaps(num_lanes, width, target.dtype, device)
        self._batch: tuple[ActiveRequest, ...] = ()
        self.state = (*self._requests[:3], self.waiting.place, *mask)

    def load_requests(self, batch: tuple[ActiveRequest, ...]) -> None:
        """Load these requests from the host; the remaining lanes idle."""
        self._batch = batch
        idle, idle_draft = self._scratch

        def fill(tensor: torch.Tensor, values: list[int] | list[float], rest: float) -> None:
            missing = [rest] * (self.num_lanes - len(values))
            tensor.copy_(torch.tensor([*values, *missing], dtype=tensor.dtype))

        samplings = [active.request.sampling for active in batch]
        requests = self._requests
        fill(requests.anchors, [active.anchor for active in batch], 0)
        fill(requests.lengths, [active.slot.length for active in batch], 0)
        fill(self._slots, [active.slot.index for active in batch], idle.index)
        if idle_draft is not None:
            fill(self._draft_slots, self._draft_places(batch), idle_draft.index)
        most = [0 if active.draft_slot is None else self.block_size for active in batch]
        fill(requests.most_drafts, most, 0)
        fill(requests.is_live, [1] * len(batch), 0)
        fill(requests.seeds, [_signed(active.sampler.numbers) for active in batch], 0)
        fill(requests.is_seeded, [int(active.sampler.is_coupled) for active in batch], 0)
        requests.mix_seeds()
        fill(self._filters.temperature, [sampling.temperature for sampling in samplings], 0)
        fill(self._filters.top_k, [sampling.top_k for sampling in samplings], 0)
        fill(self._filters.top_p, [sampling.top_p for sampling in samplings], 1)

        self._mask_logits(batch)

    def _draft_places(self, batch: tuple[ActiveRequest, ...]) -> list[int]:
        """Slots of the drafter; scratch for a request without one, or none any more."""
        _, idle = self._scratch
        assert idle is not None
        return [
            active.draft_slot.context.index if active.draft_slot and active.is_open else idle.index
            for active in batch
        ]

    def _mask_logits(self, batch: tuple[ActiveRequest, ...]) -> None:
        """A request drafts from the draft vocabulary and its own tokens."""
        if self._logit_mask is None or self._vocabulary is None:
            return
        self._logit_mask.fill_(MASKED_LOGIT)
        self._logit_mask[:, self._vocabulary] = 0.0
        for lane, active in enumerate(batch):
            held = [*active.request.prompt_ids, *active.token_ids]
            self._logit_mask[lane, torch.tensor(held, device=self._logit_mask.device)] = 0.0

    def draft(self, plan: Plan) -> DraftedBlock:
        drafter, requests = self._drafter, self._requests
        assert drafter is not None
        rows = self._rows(self._draft_slots, drafter.block_rows, plan, causal=False)
        return drafter.draft(
            requests.anchors,
            drafter.cache.over(rows),
            self._filters.temperature,
            requests.noise_seeds,
            requests.lengths,
            self._logit_mask,
        )

    def finish(self, drafted: DraftedBlock, plan: Plan) -> torch.Tensor:
        """Verify, accept and commit. -> the readback for the host, as end_round makes it."""
        count, requests = plan.num_drafts, self._requests
        chosen = plan_round(
            drafted.confidence_logits,
            None if self._drafter is None else self._drafter.calibration,
            self._filters.temperature,
            requests,
            drafted.token_ids.shape[1],
            count,
            self._target.spec.context_limit,
            self._threshold if count else None,
        )
        rows = self._rows(self._slots, count + 1, plan, causal=True)
        drafts = drafted.token_ids[:, :count] if count else None
        passed = self._target.run(requests.anchors, self._cache.over(rows), drafts)
        accepted = accept_block(
            drafted.token_ids,
            drafted.logits,
            drafted.log_sums,
            passed.logits,
            rows.row_starts,
            chosen.num_drafts,
            self._filters,
            Races(requests.is_seeded, requests.noise_seeds),
            chosen.uniforms,
            requests.lengths,
        )
        if self._drafter is not None and count:
            draft_rows = self._rows(self._draft_slots, count + 1, plan, causal=False)
            self._drafter.append(passed.taps, self._drafter.cache.over(draft_rows))
        if plan.is_parked:
            self.waiting.add(passed.taps)
        if self._logit_mask is not None:  # all but the last were drafts
            self._logit_mask.scatter_(1, accepted.next_ids.unsqueeze(1), 0.0)
        return end_round(accepted, drafted.token_ids, chosen, requests)

    def catch_up(self, num_pages: int) -> None:
        """The drafter takes in what waits, of the requests that are still open."""
        drafter, number = self._drafter, self.waiting.number
        assert drafter is not None
        places = self._draft_slots.clone()
        own = self._draft_places(self._batch)
        places[: len(own)] = torch.tensor(own, dtype=torch.int32)
        starts = (self._requests.lengths - number).clamp(min=0)  # idle lanes never moved on
        for taps in self.waiting.take():
            size = taps.shape[1]
            rows = PagedRows(places, starts, self._starts_of(size), size, num_pages, False)
            drafter.append(taps.flatten(0, 1), drafter.cache.over(rows))
            starts = starts + size

    def _rows(self, slots: torch.Tensor, size: int, plan: Plan, *, causal: bool) -> PagedRows:
        """`size` rows of every lane, after its committed ones."""
        given = (slots, self._requests.lengths, self._starts_of(size))
        return PagedRows(*given, size, plan.num_pages, causal)

    def _starts_of(self, size: int) -> torch.Tensor:
        """The lanes' first rows, if each has `size`."""
        if size not in self._row_starts:
            device = self._slots.device
            ends = torch.arange(self.num_lanes + 1, device=device, dtype=torch.int32)
            self._row_starts[size] = ends * size
        return self._row_starts[size]


def _signed(seed: int) -> int:
    """The same 64 bits as a signed number."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
