"""What decides tokens and losses: acceptance, plan and end of a round against their references,
loss terms against float64."""

import torch

from dspark_kernels import Filters, Races, TermWeights, accept_block, distribution_terms
from dspark_kernels.accept_block import AcceptedBlock, accept_block_reference
from dspark_kernels.round_state import (
    LaneState,
    end_round,
    end_round_reference,
    plan_round,
    plan_round_reference,
)
from gpu_parts.setting import BOUNDS, EXPONENTIAL_BOUND, Record, Setting, relative_error, verdict
from gpu_parts.shapes import BLOCK_SIZE, ModelShape

FILTERS = [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 50, 1.0), (1.3, 0, 0.8), (0.9, 40, 0.6)]


def check_accept(setting: Setting, shape: ModelShape, dtype: torch.dtype) -> Record:
    """Tokens, which have no tolerance; peaked logits make a tie at rounding's size unlikely."""
    slots, new, size = BLOCK_SIZE, {"device": setting.device}, shape.vocab_size
    counts = torch.tensor([slots, 0, 3, slots, 1], **new)
    target = 4 * torch.randn(len(FILTERS), slots + 1, size, **new)
    draft = target[:, :-1] + 0.3 * torch.randn(len(FILTERS), slots, size, **new)
    temperature, top_k, top_p = (torch.tensor(c, **new) for c in zip(*FILTERS, strict=True))
    scaled = draft / temperature.where(temperature > 0, 1.0).view(-1, 1, 1)
    ids = torch.stack([rows.softmax(-1).multinomial(1)[:, 0] for rows in scaled])
    ids[0] = target[0, :-1].to(dtype).argmax(-1)
    ids[0, slots - 1] = 1  # refused late
    rows = torch.cat([t[: n + 1] for t, n in zip(target, counts.tolist(), strict=True)]).to(dtype)
    first_rows = (counts + 1).cumsum(0) - counts - 1
    filters = Filters(temperature, top_k.int(), top_p)
    has_seed = torch.arange(len(FILTERS), **new) >= 3
    races = Races(has_seed & (temperature > 0), torch.arange(len(FILTERS), **new) - 2)
    uniforms = torch.rand(len(FILTERS), slots + 1, **new)
    lengths = torch.arange(len(FILTERS), **new)
    log_sums = scaled.logsumexp(-1)
    given = (ids, draft, log_sums, rows, first_rows, counts, filters, races, uniforms, lengths)
    result, expected = accept_block(*given), accept_block_reference(*given)
    same = {
        name: torch.equal(getattr(result, name), getattr(expected, name))
        for name in ("num_accepted", "next_ids", "lengths")
    }
    alone = True
    for r, count in enumerate(counts.tolist()):
        first = int(first_rows[r])
        one = [t[r : r + 1] for t in (ids, draft, log_sums)]
        single = accept_block(
            *one, rows[first : first + count + 1], first_rows[:1], counts[r : r + 1],
            Filters(*(f[r : r + 1] for f in filters)), Races(*(f[r : r + 1] for f in races)),
            uniforms[r : r + 1], lengths[r : r + 1],
        )  # fmt: skip
        alone &= torch.equal(single.next_ids, result.next_ids[r : r + 1])
        alone &= torch.equal(single.num_accepted, result.num_accepted[r : r + 1])
    record = verdict({}, **same, each_request_alone=alone)
    return record | {"num_accepted": result.num_accepted.tolist()}


def check_terms(setting: Setting, shape: ModelShape, dtype: torch.dtype) -> Record:
    num_rows, size, new = 8, shape.vocab_size, {"device": setting.device}
    draft = (3 * torch.randn(num_rows, size, **new)).to(dtype)
    target = (3 * torch.randn(num_rows - 2, size, **new)).to(dtype)
    target_rows = torch.randint(0, num_rows - 2, (num_rows,), **new)
    labels = torch.randint(0, size, (num_rows,), **new)
    row_weights = torch.rand(num_rows, **new) + 0.5
    weights = TermWeights(0.1, 0.9, 0.3)
    kernel_draft, wide_draft = draft.clone(), draft.double()
    probs, target_probs = wide_draft.softmax(-1), target.double().softmax(-1)[target_rows]
    # where both are equal but for rounding, the slope of |p - q| has no sign in float32
    decided = (probs - target_probs).abs() > 1e-4 * probs
    terms = distribution_terms(
        kernel_draft, target.clone(), target_rows, labels, row_weights, weights,
        torch.empty_like(draft),
    )  # fmt: skip
    expected = distribution_terms(
        wide_draft, target.double(), target_rows, labels, row_weights.double(), weights,
        torch.empty_like(wide_draft),
    )  # fmt: skip
    errors = {
        name: (relative_error(getattr(terms, name), getattr(expected, name)), EXPONENTIAL_BOUND)
        for name in ("cross_entropy", "distillation")
    }
    # what is summed up is the distance; where next to nothing is shared, 1 - it keeps few digits
    distances = (1.0 - each.accept_rate for each in (terms, expected))
    errors["distance"] = (relative_error(*distances), EXPONENTIAL_BOUND)
    bound = EXPONENTIAL_BOUND if dtype == torch.float32 else BOUNDS[dtype]
    errors["gradient"] = (relative_error(kernel_draft[decided], wide_draft[decided]), bound)
    return verdict(errors)


def check_round_state(setting: Setting, shape: ModelShape, dtype: torch.dtype) -> Record:
    """Four requests: one near the context's end, one idle; numbers without a tolerance but for
    confidences, which are float32 whatever dtype says."""
    slots, longest, new = BLOCK_SIZE, 4100, {"device": setting.device}
    numbers = [
        [5, 6, 7, 8],
        [0, 9, longest - 3, 2],
        [3, -5, 2**62, -(2**63)],
        [11, -5, 2**63 - 1, 0],
    ]
    is_seeded, is_live = torch.tensor([[0, 1, 0, 0], [1, 1, 1, 0]], **new).bool()
    most = torch.tensor([slots, slots, slots, 0], **new)

    def state() -> LaneState:
        return LaneState(*torch.tensor(numbers, **new), is_seeded, is_live, most)

    found_state, wanted_state = state(), state()
    logits = 2 * torch.randn(4, slots, **new)
    calibration = 0.5 + torch.rand(2, 2, slots, **new)
    temperatures = torch.tensor([0.0, 0.8, 0.0, 1.0], **new)
    given = (logits, calibration, temperatures, wanted_state, slots, slots, longest, 0.5)
    plan, wanted = plan_round(*given), plan_round_reference(*given)
    ids = torch.randint(shape.vocab_size, (4, slots), **new)
    kept = torch.tensor([2, 0, 1, 0], **new)
    accepted = AcceptedBlock(kept, ids[:, 0] + 1, wanted_state.lengths + kept + 1, ids)
    told = end_round(accepted, ids, plan, found_state)
    expected = end_round_reference(accepted, ids, plan, wanted_state)
    error = relative_error(plan.confidences, wanted.confidences)
    moved = zip(found_state, wanted_state, strict=True)
    return verdict(
        {"confidences": (error, EXPONENTIAL_BOUND)},
        num_drafts=torch.equal(plan.num_drafts, wanted.num_drafts),
        uniforms=torch.equal(plan.uniforms, wanted.uniforms),
        told=torch.equal(told, expected),
        state=all(torch.equal(ours, theirs) for ours, theirs in moved),
    )
