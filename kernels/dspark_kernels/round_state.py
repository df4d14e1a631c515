"""What the device decides before a round's pass and changes after it, for all its requests at once.

`plan_round` says how many drafts of each request are verified and draws the numbers of its tests;
`end_round` moves every request on and writes what the host reads.
"""

from typing import NamedTuple

import torch

from dspark_kernels.accept_block import AcceptedBlock
from dspark_kernels.backend import jit, next_power_of_2, tl, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.dependent_launch import launch_options, wait_for_previous
from dspark_kernels.noise import GROUP, uniform, uniform_reference

SEED_STEP = 0x9E3779B97F4A7C15 - (1 << 64)  # odd: no two rounds of a request share their noise
STEP = tl.constexpr(SEED_STEP)


class LaneState(NamedTuple):
    """Of R requests [R] each. `lengths` are their committed tokens; the anchor is the token after
    them. A round draws by `noise_seeds`: `seeds`, for requests without a seed mixed with the
    length, so that no two rounds draw alike. Lanes that are not live never move on."""

    anchors: torch.Tensor  # int64
    lengths: torch.Tensor  # int64
    noise_seeds: torch.Tensor  # int64
    seeds: torch.Tensor  # int64
    is_seeded: torch.Tensor  # bool
    is_live: torch.Tensor  # bool
    most_drafts: torch.Tensor  # int64

    def mix_seeds(self) -> None:
        """Makes `noise_seeds` those of the next round."""
        mixed = self.seeds + self.lengths * SEED_STEP
        self.noise_seeds.copy_(torch.where(self.is_seeded, self.seeds, mixed))


class RoundPlan(NamedTuple):
    """num_drafts [R] int64: how many drafts of each request are verified; confidences [R, K]
    float32, zeros without a confidence head; uniforms [R, K + 1] float32: a number for each test,
    the last for the draw."""

    num_drafts: torch.Tensor
    confidences: torch.Tensor
    uniforms: torch.Tensor


def plan_round(
    confidence_logits: torch.Tensor | None,
    calibration: torch.Tensor | None,
    temperatures: torch.Tensor,
    state: LaneState,
    num_slots: int,
    most: int,
    longest: int,
    threshold: float | None,
) -> RoundPlan:
    """confidence_logits [R, K] before calibration, both None without that head; K is num_slots.
    calibration [2, 2, K]: shifts and temperatures, of requests that sample and of those whose
    `temperatures` [R] float32 is 0.

    Verified are at most `most` drafts, as many as leave a request below `longest` tokens, and with
    a threshold those before the first confidence below it.
    """
    given = (confidence_logits, calibration, temperatures, state, num_slots, most, longest)
    device, num_requests = state.anchors.device, len(state.anchors)
    uniforms = torch.empty(num_requests, num_slots + 1, dtype=torch.float32, device=device)
    if not use_triton(uniforms):
        return plan_round_reference(*given, threshold)
    num_drafts = torch.empty_like(state.anchors)
    confidences = uniforms.new_empty(num_requests, num_slots)
    plan_round_kernel[(num_requests,)](
        confidence_logits,
        calibration,
        temperatures,
        state.lengths,
        state.noise_seeds,
        state.most_drafts,
        num_drafts,
        confidences,
        uniforms,
        num_slots,
        most,
        longest,
        0.0 if threshold is None else threshold,
        HAS_CONFIDENCE=confidence_logits is not None,
        HAS_THRESHOLD=threshold is not None,
        BLOCK=max(GROUP.value, next_power_of_2(num_slots + 1)),
        num_warps=1,
        **launch_options(device),
    )
    return RoundPlan(num_drafts, confidences, uniforms)


def plan_round_reference(
    confidence_logits: torch.Tensor | None,
    calibration: torch.Tensor | None,
    temperatures: torch.Tensor,
    state: LaneState,
    num_slots: int,
    most: int,
    longest: int,
    threshold: float | None,
) -> RoundPlan:
    """As plan_round, in torch."""
    uniforms = uniform_reference(state.noise_seeds, state.lengths, num_slots + 1)
    confidences = torch.zeros_like(uniforms[:, :-1])
    if confidence_logits is not None and calibration is not None:
        shifts, divisors = calibration[(temperatures == 0).long()].unbind(1)
        confidences = ((confidence_logits + shifts) / divisors).sigmoid()
    room = longest - 1 - state.lengths
    num_drafts = torch.minimum(state.most_drafts, room).clamp(0, most)
    if threshold is not None and most:
        confident = (confidences >= threshold).long().cumprod(dim=1).sum(dim=1)
        num_drafts = torch.minimum(num_drafts, confident)
    return RoundPlan(num_drafts, confidences, uniforms)


def end_round(
    accepted: AcceptedBlock, draft_ids: torch.Tensor, plan: RoundPlan, state: LaneState
) -> torch.Tensor:
    """Moves live requests on, past those of draft_ids [R, K] that were accepted.

    -> for the host [R, 3 + 2 K] int32: drafts accepted, the token after them, drafts verified,
    draft_ids, and the bits of their confidences.
    """
    if not use_triton(plan.confidences):
        return end_round_reference(accepted, draft_ids, plan, state)
    num_requests, num_slots = draft_ids.shape
    readback = torch.empty(
        num_requests, 3 + 2 * num_slots, dtype=torch.int32, device=draft_ids.device
    )
    end_round_kernel[(num_requests,)](
        accepted.num_accepted,
        accepted.next_ids,
        accepted.lengths,
        draft_ids,
        plan.num_drafts,
        plan.confidences,
        state.anchors,
        state.lengths,
        state.noise_seeds,
        state.seeds,
        state.is_seeded,
        state.is_live,
        readback,
        num_slots,
        BLOCK=next_power_of_2(num_slots),
        num_warps=1,
        **launch_options(draft_ids.device),
    )
    return readback


def end_round_reference(
    accepted: AcceptedBlock, draft_ids: torch.Tensor, plan: RoundPlan, state: LaneState
) -> torch.Tensor:
    """As end_round, in torch."""
    facts = [accepted.num_accepted, accepted.next_ids, plan.num_drafts]
    bits = plan.confidences.contiguous().view(torch.int32)
    readback = torch.cat([torch.stack(facts, dim=1).int(), draft_ids.int(), bits], dim=1)
    state.lengths.copy_(torch.where(state.is_live, accepted.lengths, state.lengths))
    state.anchors.copy_(torch.where(state.is_live, accepted.next_ids, state.anchors))
    state.mix_seeds()
    return readback


@jit
def plan_round_kernel(
    confidence_logits: tl.tensor,  # [R, K]
    calibration: tl.tensor,  # [2, 2, K]
    temperatures: tl.tensor,
    lengths: tl.tensor,
    noise_seeds: tl.tensor,
    most_drafts: tl.tensor,
    num_drafts: tl.tensor,
    confidences: tl.tensor,
    uniforms: tl.tensor,  # [R, K + 1]
    num_slots: tl.tensor,
    most: tl.tensor,
    longest: tl.tensor,
    threshold: tl.tensor,
    HAS_CONFIDENCE: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    wait_for_previous(DEPENDENT)
    request = tl.program_id(0)
    slot = tl.arange(0, BLOCK)
    is_draft = slot < num_slots
    length = tl.load(lengths + request)
    confidence = tl.zeros((BLOCK,), tl.float32)
    if HAS_CONFIDENCE:
        logit = tl.load(confidence_logits + request * num_slots + slot, mask=is_draft, other=0.0)
        is_greedy = (tl.load(temperatures + request) == 0.0).to(tl.int32)
        own = calibration + is_greedy * 2 * num_slots + slot
        logit += tl.load(own, mask=is_draft, other=0.0)
        scaled = logit / tl.load(own + num_slots, mask=is_draft, other=1.0)
        confidence = 1.0 / (1.0 + tl.exp(-scaled))
    tl.store(confidences + request * num_slots + slot, confidence, mask=is_draft)
    count = tl.minimum(tl.load(most_drafts + request), longest - 1 - length)
    count = tl.minimum(tl.maximum(count, 0), most)
    if HAS_THRESHOLD:
        is_unsure = is_draft & ~(confidence >= threshold)  # NaN is not sure
        first = tl.min(tl.where(is_unsure, slot, num_slots), axis=0)
        count = tl.minimum(count, first)
    tl.store(num_drafts + request, count.to(tl.int64))
    number = uniform(tl.load(noise_seeds + request), length, BLOCK)
    tl.store(uniforms + request * (num_slots + 1) + slot, number, mask=slot <= num_slots)


@jit
def end_round_kernel(
    num_accepted: tl.tensor,
    next_ids: tl.tensor,
    new_lengths: tl.tensor,
    draft_ids: tl.tensor,  # [R, K]
    num_drafts: tl.tensor,
    confidences: tl.tensor,  # [R, K]
    anchors: tl.tensor,
    lengths: tl.tensor,
    noise_seeds: tl.tensor,
    seeds: tl.tensor,
    is_seeded: tl.tensor,
    is_live: tl.tensor,
    readback: tl.tensor,  # [R, 3 + 2 K]
    num_slots: tl.tensor,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    wait_for_previous(DEPENDENT)
    request = tl.program_id(0)
    next_id = tl.load(next_ids + request)
    facts = readback + request * (3 + 2 * num_slots)
    tl.store(facts, tl.load(num_accepted + request).to(tl.int32))
    tl.store(facts + 1, next_id.to(tl.int32))
    tl.store(facts + 2, tl.load(num_drafts + request).to(tl.int32))
    slot = tl.arange(0, BLOCK)
    inside = slot < num_slots
    at = request * num_slots + slot
    tl.store(facts + 3 + slot, tl.load(draft_ids + at, mask=inside).to(tl.int32), mask=inside)
    bits = tl.load(confidences + at, mask=inside).to(tl.int32, bitcast=True)
    tl.store(facts + 3 + num_slots + slot, bits, mask=inside)
    is_moved = tl.load(is_live + request) != 0
    length = tl.load(lengths + request)
    length = tl.where(is_moved, tl.load(new_lengths + request), length)
    tl.store(lengths + request, length)
    tl.store(anchors + request, next_id, mask=is_moved)
    seed = tl.load(seeds + request)
    mixed = seed + length * STEP
    tl.store(noise_seeds + request, tl.where(tl.load(is_seeded + request) != 0, seed, mixed))


def builds() -> list[KernelBuild]:
    state = dict.fromkeys(("lengths", "noise_seeds"), "*i64")
    plan = state | {"most_drafts": "*i64", "num_drafts": "*i64", "confidences": "*fp32"}
    plan |= {"uniforms": "*fp32", "num_slots": "i32", "most": "i32", "longest": "i32"}
    plan |= {"threshold": "fp32", "temperatures": "*fp32"}
    end = state | dict.fromkeys(("num_accepted", "next_ids", "new_lengths", "draft_ids"), "*i64")
    end |= {"num_drafts": "*i64", "confidences": "*fp32", "anchors": "*i64", "seeds": "*i64"}
    end |= {"is_seeded": "*i1", "is_live": "*i1", "readback": "*i32", "num_slots": "i32"}
    sizes = {"BLOCK": 8, "DEPENDENT": True}
    kernels = [KernelBuild("end of a round", end_round_kernel, end, sizes, num_warps=1)]
    for has_confidence in (False, True):
        given = dict.fromkeys(("confidence_logits", "calibration"), "*fp32")
        constants = {"HAS_CONFIDENCE": has_confidence, "HAS_THRESHOLD": has_confidence, **sizes}
        kernels.append(
            KernelBuild(
                f"plan of a round{', confident' if has_confidence else ''}",
                plan_round_kernel,
                plan | given if has_confidence else plan,
                constants if has_confidence else constants | dict.fromkeys(given),
                num_warps=1,
            )
        )
    return kernels
