"""The kernels that accept_block.py launches in order: rows, races, masses, the draw."""

from dspark_kernels.backend import jit, tl
from dspark_kernels.dependent_launch import wait_for_previous
from dspark_kernels.last_arriver import arrives_last
from dspark_kernels.noise import MARGIN, exact_gumbel, gumbel

LOWEST = tl.constexpr(float("-inf"))
INFINITE = tl.constexpr(float("inf"))


@jit
def order_key(x: tl.tensor) -> tl.tensor:
    """float32 -> int32 that sorts alike; both zeros are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def added(total: tl.tensor, weight: tl.tensor, key: tl.tensor, cut: tl.tensor) -> tl.tensor:
    """The sums of a thread's own tokens, with those of this block that are at or above the cut."""
    return total + tl.where(key >= cut, weight, 0.0)


@jit
def reaches(total: tl.tensor, goal: tl.tensor) -> tl.tensor:
    return (tl.sum(total, axis=0) >= goal).to(tl.int32)


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
    """The largest key such that `goal` of the tokens, or of their mass, are at or above it.

    Three bits a pass: seven cuts are tried, each with a sum of its own, which is added across
    threads once a pass. Tokens below `floor` do not count. Of 16-bit logits only the upper half of
    a key differs.
    """
    cut = floor * 0 - 2147483647 - 1
    for digit in range(0, (NUM_BITS + 2) // 3):
        shift = tl.maximum(29 - 3 * digit, 32 - NUM_BITS)
        none = tl.zeros((BLOCK,), tl.float32)
        of_1, of_2, of_3, of_4, of_5, of_6, of_7 = none, none, none, none, none, none, none
        for first in range(0, num_tokens, BLOCK):
            token = first + tl.arange(0, BLOCK)
            value = tl.load(row + token, mask=token < num_tokens, other=LOWEST).to(tl.float32)
            key = order_key(value)
            counts = (token < num_tokens) & (key >= floor)
            if BY_MASS:
                weight = tl.where(counts, tl.exp((value - largest) / temperature), 0.0)
            else:
                weight = counts.to(tl.float32)
            of_1 = added(of_1, weight, key, cut + (1 << shift))
            of_2 = added(of_2, weight, key, cut + (2 << shift))
            of_3 = added(of_3, weight, key, cut + (3 << shift))
            of_4 = added(of_4, weight, key, cut + (4 << shift))
            of_5 = added(of_5, weight, key, cut + (5 << shift))
            of_6 = added(of_6, weight, key, cut + (6 << shift))
            of_7 = added(of_7, weight, key, cut + (7 << shift))
        # how much is above falls with the cut: the last that reaches the goal. Where the digit is
        # of fewer than three bits, cuts beyond it are out of reach anyway
        num_reaching = reaches(of_1, goal) + reaches(of_2, goal) + reaches(of_3, goal)
        num_reaching += reaches(of_4, goal) + reaches(of_5, goal) + reaches(of_6, goal)
        cut += (num_reaching + reaches(of_7, goal)) << shift
    return cut


@jit
def row_kernel(
    target_logits: tl.tensor,  # [N, V]
    first_rows: tl.tensor,
    num_drafts: tl.tensor,
    temperatures: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    part_best: tl.tensor,  # [R, K + 1, parts]
    part_where: tl.tensor,
    counters: tl.tensor,
    choices: tl.tensor,  # [R, K + 1]
    stats: tl.tensor,  # [2, R, K + 1]
    num_tokens: tl.tensor,
    NUM_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """A part of a row of a request; the last program of a row finishes it: its likeliest token, or
    -1 where the row is no distribution; unless greedy, the lowest logit that is kept and the
    logarithm of what all kept ones sum to."""
    wait_for_previous(DEPENDENT)
    request, slot = tl.program_id(0), tl.program_id(1)
    num_parts = tl.num_programs(2)
    at = request * tl.num_programs(1) + slot
    if slot <= tl.load(num_drafts + request):
        row_index = (tl.load(first_rows + request) + slot).to(tl.int64)
        row = target_logits + row_index * num_tokens
        store_likeliest(
            row, num_tokens, part_best + at * num_parts, part_where + at * num_parts, BLOCK, SPAN
        )
        if arrives_last(counters + at, num_parts):
            part = tl.arange(0, BLOCK_PARTS)
            inside = part < num_parts
            mine = at * num_parts + part
            best = tl.load(part_best + mine, mask=inside, other=LOWEST, cache_modifier=".cg")
            where = tl.load(part_where + mine, mask=inside, other=0x7FFFFFFF, cache_modifier=".cg")
            largest = tl.max(best, axis=0)
            choice = tl.min(tl.where(best == largest, where, 0x7FFFFFFF), axis=0)
            is_sound = (tl.min(where, axis=0) >= 0) & (largest > LOWEST)
            tl.store(choices + at, tl.where(is_sound, choice, -1))
            temperature = tl.load(temperatures + request)
            if (temperature > 0) & is_sound:
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
def store_likeliest(
    row: tl.tensor,
    num_tokens: tl.tensor,
    part_best: tl.tensor,
    part_where: tl.tensor,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    """Of a program's SPAN tokens: the largest logit and the first that has it, -1 if one of them
    forbids that the row is a distribution."""
    begin = tl.program_id(2) * SPAN
    best = tl.full((BLOCK,), LOWEST, tl.float32)
    where = tl.zeros((BLOCK,), tl.int32) + begin
    unsound = tl.zeros((BLOCK,), tl.int32)
    for first in range(begin, tl.minimum(begin + SPAN, num_tokens), BLOCK):
        token = first + tl.arange(0, BLOCK)
        value = tl.load(row + token, mask=token < num_tokens, other=LOWEST).to(tl.float32)
        where = tl.where(value > best, token, where)
        best = tl.maximum(best, value)
        unsound = tl.where(value < INFINITE, unsound, 1)  # NaN is below nothing
    largest = tl.max(best, axis=0)
    choice = tl.min(tl.where(best == largest, where, 0x7FFFFFFF), axis=0)
    tl.store(part_best + tl.program_id(2), largest)
    tl.store(part_where + tl.program_id(2), tl.where(tl.max(unsound, axis=0) == 0, choice, -1))


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
def race_kernel(
    target_logits: tl.tensor,  # [N, V]
    first_rows: tl.tensor,
    num_drafts: tl.tensor,
    temperatures: tl.tensor,
    is_seeded: tl.tensor,
    seeds: tl.tensor,
    lengths: tl.tensor,
    choices: tl.tensor,  # [R, K + 1]
    stats: tl.tensor,  # [2, R, K + 1]
    num_tokens: tl.tensor,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One row of one request with a seed: in the place of its likeliest token the one whose score
    and noise are most. First by quick logarithms; then, of those near the top, by exact ones."""
    wait_for_previous(DEPENDENT)
    request, slot = tl.program_id(0), tl.program_id(1)
    at = request * tl.num_programs(1) + slot
    is_run = tl.load(is_seeded + request) & (slot <= tl.load(num_drafts + request))
    if is_run & (tl.load(choices + at) >= 0):
        row = target_logits + (tl.load(first_rows + request) + slot).to(tl.int64) * num_tokens
        largest = tl.load(row + tl.load(choices + at)).to(tl.float32)
        temperature, cut = tl.load(temperatures + request), tl.load(stats + at)
        seed, place = tl.load(seeds + request), tl.load(lengths + request) + slot + 1
        best = tl.full((BLOCK,), LOWEST, tl.float32)
        for first in range(0, num_tokens, BLOCK):
            score = row_scores(row, first, num_tokens, cut, largest, temperature, BLOCK)
            best = tl.maximum(best, score + gumbel(seed, place, first, BLOCK))
        near = tl.max(best, axis=0) - MARGIN
        best = tl.full((BLOCK,), LOWEST, tl.float32)
        where = tl.zeros((BLOCK,), tl.int32)
        for first in range(0, num_tokens, BLOCK):
            score = row_scores(row, first, num_tokens, cut, largest, temperature, BLOCK)
            quick = score + gumbel(seed, place, first, BLOCK)
            if tl.max(quick, axis=0) >= near:
                exact = score + exact_gumbel(seed, place, first, BLOCK)
                exact = tl.where(quick >= near, exact, LOWEST)
                where = tl.where(exact > best, first + tl.arange(0, BLOCK), where)
                best = tl.maximum(best, exact)
        top = tl.max(best, axis=0)
        tl.store(choices + at, tl.min(tl.where(best == top, where, 0x7FFFFFFF), axis=0))


@jit
def row_scores(
    row: tl.tensor,
    first: tl.tensor,
    num_tokens: tl.tensor,
    cut: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Scores of a block of tokens before noise, as `kept` in sampling.py."""
    token = first + tl.arange(0, BLOCK)
    value = tl.load(row + token, mask=token < num_tokens, other=LOWEST).to(tl.float32)
    score = tl.div_rn(value - largest, temperature)
    return tl.where((token < num_tokens) & (value >= cut), score, LOWEST)


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
    """Weights of tokens in the draw: the target's probability, minus the draft's if rejected."""
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
        drafted = tl.where(
            drafted < INFINITE, drafted, 0.0
        )  # NaN: no draft, so nothing to leave out
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
    is_seeded: tl.tensor,
    uniforms: tl.tensor,  # [R, K + 1]
    choices: tl.tensor,
    stats: tl.tensor,
    masses: tl.tensor,  # [R, blocks]
    num_accepted: tl.tensor,
    num_slots: tl.tensor,
    num_tokens: tl.tensor,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One block of tokens of one request. Every program does the tests for itself."""
    wait_for_previous(DEPENDENT)
    request, block = tl.program_id(0), tl.program_id(1)
    temperature = tl.load(temperatures + request)
    is_tested = (temperature > 0) & (tl.load(is_seeded + request) == 0)
    count = tl.load(num_drafts + request)
    first_row = tl.load(first_rows + request)
    kept = count * 0
    goes_on = count >= 0
    for slot in range(0, count):
        token = tl.load(draft_ids + request * num_slots + slot)
        choice = tl.load(choices + request * (num_slots + 1) + slot)
        if is_tested:
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
            is_good = (choice >= 0) & (uniform * drafted < target)
        else:
            is_good = choice == token
        goes_on = goes_on & is_good
        kept += goes_on.to(kept.dtype)
    if block == 0:
        tl.store(num_accepted + request, kept.to(tl.int64))
    if is_tested:
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
    is_seeded: tl.tensor,
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
    DEPENDENT: tl.constexpr,
) -> None:
    """The block in which the point falls, then the token in it. Where the row is no distribution,
    num_accepted becomes -1."""
    wait_for_previous(DEPENDENT)
    request = tl.program_id(0)
    temperature = tl.load(temperatures + request)
    is_tested = (temperature > 0) & (tl.load(is_seeded + request) == 0)
    kept = tl.load(num_accepted + request)
    chosen = tl.load(choices + request * (num_slots + 1) + kept).to(tl.int64)
    is_sound = chosen >= 0
    if is_tested & is_sound:
        part = tl.arange(0, BLOCK_PARTS)
        mass = tl.load(masses + request * num_blocks + part, mask=part < num_blocks, other=0.0)
        up_to = tl.cumsum(mass, axis=0)
        total = tl.max(up_to, axis=0)
        # nothing is left if both distributions are equal; then the likeliest token is used
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
    chosen = tl.maximum(chosen, 0)
    if not is_sound:
        tl.store(num_accepted + request, kept * 0 - 1)
    tl.store(next_ids + request, chosen)
    tl.store(lengths + request, tl.load(old_lengths + request) + kept + 1)
    slot = tl.arange(0, BLOCK_SLOTS)
    drafted = tl.load(draft_ids + request * num_slots + slot, mask=slot < num_slots, other=0)
    drafted = tl.where(slot == kept, chosen, drafted)
    tl.store(tokens + request * (num_slots + 1) + slot, drafted, mask=slot <= num_slots)
