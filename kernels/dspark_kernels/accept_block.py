"""The end of a round for all requests at once: filters, acceptance tests, the next token.

`row_kernel` takes what it needs of a target's row (the likeliest token, or cut and mass of the
distribution that top-k and top-p leave), `mass_kernel` does the tests and adds up in blocks what
the next token is drawn from, `draw_kernel` draws it. Nothing comes back to the host in between.
"""

from typing import NamedTuple

import torch

from dspark_kernels.backend import jit, next_power_of_2, tl, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.sampling import probabilities

BLOCK_ROW = 2048
BLOCK_MASS = 128
ROW_REGISTERS = 128  # stated, because ptxas else aims below what the row kernel needs
LOWEST = tl.constexpr(float("-inf"))
NUM_CUTS = tl.constexpr(8)  # thresholds tried in one pass over a row


class Filters(NamedTuple):
    """How each request samples, [R] each: temperature (0: greedy), top_k (0: all), top_p."""

    temperature: torch.Tensor  # float32
    top_k: torch.Tensor  # int32
    top_p: torch.Tensor  # float32


class AcceptedBlock(NamedTuple):
    """Per request: drafts kept, the token after them, the new number of committed tokens [R];
    tokens [R, K + 1], of which the first num_accepted + 1 count."""

    num_accepted: torch.Tensor
    next_ids: torch.Tensor
    lengths: torch.Tensor
    tokens: torch.Tensor


def accept_block_reference(
    draft_ids: torch.Tensor,
    draft_logits: torch.Tensor,
    draft_log_sums: torch.Tensor,
    target_logits: torch.Tensor,
    first_rows: torch.Tensor,
    num_drafts: torch.Tensor,
    filters: Filters,
    uniforms: torch.Tensor,
    lengths: torch.Tensor,
) -> AcceptedBlock:
    """draft_ids [R, K]; draft_logits [R, K, V] and draft_log_sums [R, K] as DraftedBlock has them.

    Of request r, target_logits [N, V] has rows first_rows[r] .. + num_drafts[r]. uniforms
    [R, K + 1] float32: one for each test, the last for the draw. lengths [R] int64 before the
    round.
    """
    num_accepted, next_ids = [], []
    for r, count in enumerate(num_drafts.tolist()):
        first = int(first_rows[r])
        rows = target_logits[first : first + count + 1].float()
        temperature, top_k, top_p = (f[r].item() for f in filters)
        ids = draft_ids[r, :count]
        if temperature == 0:
            choices = rows.argmax(-1)
            kept = int((choices[:-1] == ids).int().cumprod(0).sum())
            num_accepted.append(kept)
            next_ids.append(int(choices[kept]))
            continue
        target = probabilities(rows, temperature, int(top_k), top_p)
        scaled = draft_logits[r, :count].float() / temperature
        draft = (scaled - draft_log_sums[r, :count, None]).exp()
        at = ids.unsqueeze(1)
        refused = uniforms[r, :count] * draft.gather(1, at)[:, 0] >= target.gather(1, at)[:, 0]
        kept = int((~refused).int().cumprod(0).sum())
        mass = target[kept] if kept == count else (target[kept] - draft[kept]).clamp_(min=0.0)
        cumulative = mass.double().cumsum(0)
        point = uniforms[r, -1].double() * cumulative[-1]
        token = int(torch.searchsorted(cumulative, point, right=True))
        num_accepted.append(kept)
        next_ids.append(token if token < len(mass) else int(rows[kept].argmax()))
    device = draft_ids.device
    accepted = torch.tensor(num_accepted, device=device)
    chosen = torch.tensor(next_ids, device=device)
    tokens = torch.cat([draft_ids, draft_ids.new_zeros(len(draft_ids), 1)], dim=1)
    tokens = tokens.scatter(1, accepted.unsqueeze(1), chosen.unsqueeze(1))
    return AcceptedBlock(accepted, chosen, lengths + accepted + 1, tokens)


def accept_block(
    draft_ids: torch.Tensor,
    draft_logits: torch.Tensor,
    draft_log_sums: torch.Tensor,
    target_logits: torch.Tensor,
    first_rows: torch.Tensor,
    num_drafts: torch.Tensor,
    filters: Filters,
    uniforms: torch.Tensor,
    lengths: torch.Tensor,
) -> AcceptedBlock:
    """As accept_block_reference."""
    if not use_triton(target_logits):
        return accept_block_reference(
            draft_ids, draft_logits, draft_log_sums, target_logits, first_rows, num_drafts, filters,
            uniforms, lengths,
        )  # fmt: skip
    target_logits = target_logits.contiguous()
    num_requests, num_slots = draft_ids.shape
    num_tokens = target_logits.shape[1]
    num_blocks = -(-num_tokens // BLOCK_MASS)
    new = target_logits.new_empty
    choices = new(num_requests, num_slots + 1, dtype=torch.int32)
    stats = new(2, num_requests, num_slots + 1, dtype=torch.float32)  # cut, log of the mass
    masses = new(num_requests, num_blocks, dtype=torch.float32)
    accepted, chosen, grown = new(3, num_requests, dtype=torch.int64)
    tokens = new(num_requests, num_slots + 1, dtype=torch.int64)
    block = min(BLOCK_ROW, next_power_of_2(num_tokens))
    row_kernel[(num_requests, num_slots + 1)](
        target_logits, first_rows, num_drafts, *filters, choices, stats, num_tokens,
        NUM_BITS=32 if target_logits.dtype == torch.float32 else 16, BLOCK=block, num_warps=8,
        maxnreg=ROW_REGISTERS,
    )  # fmt: skip
    mass_kernel[(num_requests, num_blocks)](
        draft_ids, draft_logits, draft_log_sums, target_logits, first_rows, num_drafts,
        filters.temperature, uniforms, choices, stats, masses, accepted, num_slots,
        num_tokens, BLOCK=BLOCK_MASS, num_warps=1,
    )  # fmt: skip
    draw_kernel[(num_requests,)](
        draft_ids, draft_logits, draft_log_sums, target_logits, first_rows, num_drafts,
        filters.temperature, uniforms, choices, stats, masses, accepted, chosen, lengths, grown,
        tokens, num_slots, num_tokens, num_blocks, BLOCK=BLOCK_MASS,
        BLOCK_PARTS=next_power_of_2(num_blocks), BLOCK_SLOTS=next_power_of_2(num_slots + 1),
    )  # fmt: skip
    return AcceptedBlock(accepted, chosen, grown, tokens)


@jit
def order_key(x: tl.tensor) -> tl.tensor:
    """float32 -> int32 that sorts alike; both zeros are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def cut_where(
    row: tl.tensor,
    num_tokens: tl.tensor,
    floor: tl.tensor,
    goal: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    BY_MASS: tl.constexpr,
    NUM_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The largest key at or above which lie `goal` of the tokens, or of their mass.

    Three bits a pass. Tokens below `floor` do not count. Of 16-bit logits only the upper half of a
    key differs.
    """
    cut = floor * 0 - 2147483647 - 1
    tried = tl.arange(0, NUM_CUTS)
    for digit in range(0, (NUM_BITS + 2) // 3):
        shift = tl.maximum(29 - 3 * digit, 32 - NUM_BITS)
        candidates = cut + (tried << shift)
        reached = tl.zeros((NUM_CUTS,), tl.float32)
        for first in range(0, num_tokens, BLOCK):
            token = first + tl.arange(0, BLOCK)
            value = tl.load(row + token, mask=token < num_tokens, other=LOWEST).to(tl.float32)
            key = order_key(value)
            counts = (token < num_tokens) & (key >= floor)
            if BY_MASS:
                weight = tl.where(counts, tl.exp((value - largest) / temperature), 0.0)
            else:
                weight = counts.to(tl.float32)
            above = key[:, None] >= candidates[None, :]
            reached += tl.sum(tl.where(above, weight[:, None], 0.0), axis=0)
        # how much is above falls with the candidate: the last that reaches the goal. Where the
        # digit is of fewer than three bits, candidates beyond it are out of reach anyway
        num_reaching = tl.sum((reached >= goal).to(tl.int32), axis=0)
        cut += tl.maximum(num_reaching - 1, 0) << shift
    return cut


@jit
def row_kernel(
    target_logits: tl.tensor,  # [N, V]
    first_rows: tl.tensor,
    num_drafts: tl.tensor,
    temperatures: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    choices: tl.tensor,  # [R, K + 1]
    stats: tl.tensor,  # [2, R, K + 1]
    num_tokens: tl.tensor,
    NUM_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One row of one request: its likeliest token; unless greedy, the lowest logit that is kept and
    the logarithm of what all kept ones sum to."""
    request, slot = tl.program_id(0), tl.program_id(1)
    at = request * tl.num_programs(1) + slot
    if slot <= tl.load(num_drafts + request):
        row_index = (tl.load(first_rows + request) + slot).to(tl.int64)
        row = target_logits + row_index * num_tokens
        best = tl.full((BLOCK,), LOWEST, tl.float32)
        where = tl.zeros((BLOCK,), tl.int32)
        for first in range(0, num_tokens, BLOCK):
            token = first + tl.arange(0, BLOCK)
            value = tl.load(row + token, mask=token < num_tokens, other=LOWEST).to(tl.float32)
            where = tl.where(value > best, token, where)
            best = tl.maximum(best, value)
        largest = tl.max(best, axis=0)
        tl.store(choices + at, tl.min(tl.where(best == largest, where, 0x7FFFFFFF), axis=0))
        temperature = tl.load(temperatures + request)
        if temperature > 0:
            top_k, top_p = tl.load(top_ks + request), tl.load(top_ps + request)
            floor = order_key(largest * 0 + LOWEST)
            if (top_k > 0) & (top_k < num_tokens):
                floor = tl.maximum(floor, cut_where(
                    row, num_tokens, floor, top_k.to(tl.float32), largest, temperature,
                    False, NUM_BITS, BLOCK,
                ))  # fmt: skip
            total = kept_mass(row, num_tokens, floor, largest, temperature, BLOCK)
            if top_p < 1.0:
                floor = tl.maximum(floor, cut_where(
                    row, num_tokens, floor, top_p * total, largest, temperature,
                    True, NUM_BITS, BLOCK,
                ))  # fmt: skip
                total = kept_mass(row, num_tokens, floor, largest, temperature, BLOCK)
            bits = floor ^ ((floor >> 31) & 0x7FFFFFFF)
            tl.store(stats + at, bits.to(tl.float32, bitcast=True))
            log_sum = largest / temperature + tl.log(total)
            tl.store(stats + tl.num_programs(0) * tl.num_programs(1) + at, log_sum)


@jit
def kept_mass(
    row: tl.tensor,
    num_tokens: tl.tensor,
    floor: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The sum of exp((logit - largest) / temperature) over keys from `floor` up."""
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, num_tokens, BLOCK):
        token = first + tl.arange(0, BLOCK)
        value = tl.load(row + token, mask=token < num_tokens, other=LOWEST).to(tl.float32)
        kept = (token < num_tokens) & (order_key(value) >= floor)
        total += tl.where(kept, tl.exp((value - largest) / temperature), 0.0)
    return tl.sum(total, axis=0)


@jit
def next_mass(
    draft_logits: tl.tensor,
    draft_log_sums: tl.tensor,
    target_logits: tl.tensor,
    stats: tl.tensor,
    request: tl.tensor,
    num_requests: tl.tensor,
    kept: tl.tensor,
    is_refused: tl.tensor,
    row: tl.tensor,
    token: tl.tensor,
    temperature: tl.tensor,
    num_slots: tl.tensor,
    num_tokens: tl.tensor,
) -> tl.tensor:
    """What tokens weigh in the draw: the target's probability, less the draft's if refused."""
    inside = token < num_tokens
    value = tl.load(target_logits + row.to(tl.int64) * num_tokens + token, mask=inside, other=0.0)
    value = value.to(tl.float32)
    at = stats + request * (num_slots + 1) + kept
    log_sum = tl.load(at + num_requests * (num_slots + 1))
    is_kept = inside & (value >= tl.load(at))
    mass = tl.where(is_kept, tl.exp(value / temperature - log_sum), 0.0)
    if is_refused:
        slot = (request * num_slots + kept).to(tl.int64)
        drafted = tl.load(draft_logits + slot * num_tokens + token, mask=inside, other=0.0)
        drafted = tl.exp(drafted / temperature - tl.load(draft_log_sums + slot))
        mass = tl.where(inside, tl.maximum(mass - drafted, 0.0), 0.0)
    return mass


@jit
def mass_kernel(
    draft_ids: tl.tensor,  # [R, K]
    draft_logits: tl.tensor,  # [R, K, V]
    draft_log_sums: tl.tensor,  # [R, K]
    target_logits: tl.tensor,
    first_rows: tl.tensor,
    num_drafts: tl.tensor,
    temperatures: tl.tensor,
    uniforms: tl.tensor,  # [R, K + 1]
    choices: tl.tensor,
    stats: tl.tensor,
    masses: tl.tensor,  # [R, blocks]
    num_accepted: tl.tensor,
    num_slots: tl.tensor,
    num_tokens: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One block of tokens of one request. Every program does the tests for itself."""
    request, block = tl.program_id(0), tl.program_id(1)
    temperature = tl.load(temperatures + request)
    count = tl.load(num_drafts + request)
    first_row = tl.load(first_rows + request)
    kept = count * 0
    goes_on = count >= 0
    for slot in range(0, count):
        token = tl.load(draft_ids + request * num_slots + slot)
        if temperature > 0:
            at = stats + request * (num_slots + 1) + slot
            row = (first_row + slot).to(tl.int64)
            value = tl.load(target_logits + row * num_tokens + token).to(tl.float32)
            log_sum = tl.load(at + tl.num_programs(0) * (num_slots + 1))
            target = tl.exp(value / temperature - log_sum)
            target = tl.where(value >= tl.load(at), target, 0.0)
            drafted_at = request * num_slots + slot
            logit = tl.load(draft_logits + drafted_at.to(tl.int64) * num_tokens + token)
            drafted = tl.exp(logit / temperature - tl.load(draft_log_sums + drafted_at))
            uniform = tl.load(uniforms + request * (num_slots + 1) + slot)
            is_good = uniform * drafted < target
        else:
            is_good = tl.load(choices + request * (num_slots + 1) + slot) == token
        goes_on = goes_on & is_good
        kept += goes_on.to(kept.dtype)
    if block == 0:
        tl.store(num_accepted + request, kept.to(tl.int64))
    if temperature > 0:
        token = block * BLOCK + tl.arange(0, BLOCK)
        mass = next_mass(
            draft_logits, draft_log_sums, target_logits, stats, request, tl.num_programs(0), kept,
            kept < count, first_row + kept, token, temperature, num_slots, num_tokens,
        )  # fmt: skip
        tl.store(masses + request * tl.num_programs(1) + block, tl.sum(mass, axis=0))


@jit
def draw_kernel(
    draft_ids: tl.tensor,
    draft_logits: tl.tensor,
    draft_log_sums: tl.tensor,
    target_logits: tl.tensor,
    first_rows: tl.tensor,
    num_drafts: tl.tensor,
    temperatures: tl.tensor,
    uniforms: tl.tensor,
    choices: tl.tensor,
    stats: tl.tensor,
    masses: tl.tensor,
    num_accepted: tl.tensor,
    next_ids: tl.tensor,
    old_lengths: tl.tensor,
    lengths: tl.tensor,
    tokens: tl.tensor,  # [R, K + 1]
    num_slots: tl.tensor,
    num_tokens: tl.tensor,
    num_blocks: tl.tensor,
    BLOCK: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
) -> None:
    """The block in which the point falls, then the token in it."""
    request = tl.program_id(0)
    temperature = tl.load(temperatures + request)
    kept = tl.load(num_accepted + request)
    chosen = tl.load(choices + request * (num_slots + 1) + kept).to(tl.int64)
    if temperature > 0:
        part = tl.arange(0, BLOCK_PARTS)
        mass = tl.load(masses + request * num_blocks + part, mask=part < num_blocks, other=0.0)
        up_to = tl.cumsum(mass, axis=0)
        total = tl.max(up_to, axis=0)
        # nothing is left where both distributions are equal; then the likeliest token stands
        if total > 0:
            point = tl.load(uniforms + request * (num_slots + 1) + num_slots) * total
            last = tl.max(tl.where(mass > 0, part, 0), axis=0)
            block = tl.minimum(tl.sum((up_to <= point).to(tl.int32), axis=0), last)
            before = tl.sum(tl.where(part < block, mass, 0.0), axis=0)
            token = block * BLOCK + tl.arange(0, BLOCK)
            row = tl.load(first_rows + request) + kept
            is_refused = kept < tl.load(num_drafts + request)
            inner = next_mass(
                draft_logits, draft_log_sums, target_logits, stats, request, tl.num_programs(0),
                kept, is_refused, row, token, temperature, num_slots, num_tokens,
            )  # fmt: skip
            passed = (before + tl.cumsum(inner, axis=0) <= point) & (token < num_tokens)
            last = tl.max(tl.where(inner > 0, tl.arange(0, BLOCK), 0), axis=0)
            index = tl.minimum(tl.sum(passed.to(tl.int32), axis=0), last)
            chosen = (block * BLOCK + index).to(tl.int64)
    tl.store(next_ids + request, chosen)
    tl.store(lengths + request, tl.load(old_lengths + request) + kept + 1)
    slot = tl.arange(0, BLOCK_SLOTS)
    drafted = tl.load(draft_ids + request * num_slots + slot, mask=slot < num_slots, other=0)
    drafted = tl.where(slot == kept, chosen, drafted)
    tl.store(tokens + request * (num_slots + 1) + slot, drafted, mask=slot <= num_slots)


def builds() -> list[KernelBuild]:
    found = []
    integers = {"first_rows": "*i64", "num_drafts": "*i64"}
    drafts = {"draft_ids": "*i64", "draft_logits": "*fp32", "draft_log_sums": "*fp32"}
    inner = {"temperatures": "*fp32", "uniforms": "*fp32", "choices": "*i32", "stats": "*fp32"}
    inner |= {"masses": "*fp32", "num_accepted": "*i64"}
    for element, num_bits in (("bf16", 16), ("fp32", 32)):
        target = {"target_logits": f"*{element}"}
        row = target | integers | {"temperatures": "*fp32", "top_ks": "*i32", "top_ps": "*fp32"}
        row |= {"choices": "*i32", "stats": "*fp32", "num_tokens": "i32"}
        sizes = {"num_slots": "i32", "num_tokens": "i32"}
        last = {"next_ids": "*i64", "old_lengths": "*i64", "lengths": "*i64", "tokens": "*i64"}
        blocks = {"BLOCK": BLOCK_MASS, "BLOCK_PARTS": 2048, "BLOCK_SLOTS": 8}
        found += [
            KernelBuild(
                f"accept row {element}",
                row_kernel,
                row,
                {"NUM_BITS": num_bits, "BLOCK": BLOCK_ROW},
                num_warps=8,
                max_registers=ROW_REGISTERS,
            ),
            KernelBuild(
                f"accept mass {element}",
                mass_kernel,
                drafts | target | integers | inner | sizes,
                {"BLOCK": BLOCK_MASS},
                num_warps=1,
            ),
            KernelBuild(
                f"accept draw {element}",
                draw_kernel,
                drafts | target | integers | inner | last | sizes | {"num_blocks": "i32"},
                blocks,
            ),
        ]
    return found
