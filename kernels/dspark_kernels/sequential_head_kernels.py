"""The kernels of sequential_head.py per step: features of the last token, the vocabulary."""

from dspark_kernels.backend import jit, tl
from dspark_kernels.dependent_launch import LINE, touch, wait_for_previous
from dspark_kernels.noise import gumbel
from dspark_kernels.rounding import round_to

LINE_BYTES = tl.constexpr(LINE)
TILES_AHEAD = 3  # that a program fetches for later ones, before it begins itself
AHEAD = tl.constexpr(TILES_AHEAD)


@jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    return 1.0 / (1.0 + tl.exp(-x))


@jit
def tanh(x: tl.tensor) -> tl.tensor:
    return 2.0 * sigmoid(2.0 * x) - 1.0


@jit
def gate_sums(
    own_gates: tl.tensor,
    own: tl.tensor,
    rows: tl.tensor,
    first: tl.constexpr,
    RANK: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
) -> tl.tensor:
    """own_gates[rows, first : first + RANK] · own -> one sum per row."""
    column = tl.arange(0, BLOCK_RANK)
    tile = tl.load(
        own_gates + rows[:, None] * WIDTH + first + column[None, :],
        mask=(column < RANK)[None, :],
        other=0.0,
    )
    return tl.sum(tile.to(tl.float32) * own[None, :], axis=1)


@jit
def features_kernel(
    anchors: tl.tensor,  # [R]
    parts: tl.tensor,  # [4, R, blocks]
    w1: tl.tensor,  # [V, RANK]
    of_hidden: tl.tensor,  # [R * K, NUM_OF_HIDDEN]
    own_gates: tl.tensor,  # [RANK, RANK] gated, [3 RANK, 2 RANK] rnn
    confidence_weight: tl.tensor,  # [RANK]
    old_state: tl.tensor,  # [R, RANK]
    new_state: tl.tensor,
    features: tl.tensor,  # [R, RANK]
    token_ids: tl.tensor,  # [R, K]
    log_sums: tl.tensor,
    confidences: tl.tensor,
    step: tl.tensor,
    num_requests: tl.tensor,
    num_steps: tl.tensor,
    num_blocks: tl.tensor,
    num_tokens: tl.tensor,
    KIND: tl.constexpr,
    RANK: tl.constexpr,
    NUM_OF_HIDDEN: tl.constexpr,
    HAS_CONFIDENCE: tl.constexpr,
    CONFIDENCE_READS_TOKEN: tl.constexpr,
    IS_FIRST: tl.constexpr,
    IS_END: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One request and one block of features. Every program finds the last token by itself."""
    wait_for_previous(DEPENDENT)
    request = tl.program_id(0)
    is_writer = tl.program_id(1) == 0
    if IS_FIRST:
        token = tl.load(anchors + request)
    else:
        block = tl.arange(0, BLOCK_PARTS)
        inside = block < num_blocks
        mine = parts + request * num_blocks + block
        stride = num_requests * num_blocks
        scores = tl.load(mine, mask=inside, other=float("-inf"))
        tokens = tl.load(mine + stride, mask=inside, other=0.0).to(tl.int32, bitcast=True)
        best = tl.max(scores, axis=0)
        token = tl.min(tl.where(inside & (scores == best), tokens, 0x7FFFFFFF), axis=0).to(tl.int64)
        token = tl.minimum(token, num_tokens - 1)  # no score equals the best if all are NaN
        if is_writer:
            largest = tl.load(mine + 2 * stride, mask=inside, other=float("-inf"))
            sums = tl.load(mine + 3 * stride, mask=inside, other=0.0)
            top = tl.max(largest, axis=0)
            log_sum = top + tl.log(tl.sum(sums * tl.exp(largest - top), axis=0))
            tl.store(token_ids + request * num_steps + step - 1, token)
            tl.store(log_sums + request * num_steps + step - 1, log_sum)
    if not IS_END:
        mine_of_hidden = of_hidden
        if NUM_OF_HIDDEN > 0:
            mine_of_hidden += (request * num_steps + step) * NUM_OF_HIDDEN
        column = tl.arange(0, BLOCK_RANK)
        if RANK > 0:
            embedding = tl.load(w1 + token * RANK + column, mask=column < RANK, other=0.0)
            embedding = embedding.to(tl.float32)
        if HAS_CONFIDENCE:
            logit = tl.load(mine_of_hidden + NUM_OF_HIDDEN - 1).to(tl.float32)
            if CONFIDENCE_READS_TOKEN:
                weight = tl.load(confidence_weight + column, mask=column < RANK, other=0.0)
                logit += tl.sum(weight.to(tl.float32) * embedding, axis=0)
            if is_writer:
                tl.store(confidences + request * num_steps + step, logit)
        if RANK > 0:
            feature = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
            is_mine = feature < RANK
            row = tl.minimum(feature, RANK - 1)
            value = tl.load(w1 + token * RANK + row).to(tl.float32)
            if KIND == "gated":
                gate = gate_sums(own_gates, embedding, row, 0, RANK, RANK, BLOCK_RANK)
                value *= sigmoid(gate + tl.load(mine_of_hidden + row).to(tl.float32))
            if KIND == "rnn":
                KNOWN: tl.constexpr = 0 if IS_FIRST else RANK  # a block begins with zeros
                state = tl.load(old_state + request * RANK + column, mask=column < KNOWN, other=0.0)
                gate = tl.load(mine_of_hidden + row).to(tl.float32)
                gate += gate_sums(own_gates, state, row, 0, RANK, 2 * RANK, BLOCK_RANK)
                gate += gate_sums(own_gates, embedding, row, RANK, RANK, 2 * RANK, BLOCK_RANK)
                row += RANK
                candidate = tl.load(mine_of_hidden + row).to(tl.float32)
                candidate += gate_sums(own_gates, state, row, 0, RANK, 2 * RANK, BLOCK_RANK)
                candidate += gate_sums(own_gates, embedding, row, RANK, RANK, 2 * RANK, BLOCK_RANK)
                row += RANK
                value = tl.load(mine_of_hidden + row).to(tl.float32)
                value += gate_sums(own_gates, state, row, 0, RANK, 2 * RANK, BLOCK_RANK)
                value += gate_sums(own_gates, embedding, row, RANK, RANK, 2 * RANK, BLOCK_RANK)
                value = tanh(value)
                gate = sigmoid(gate)
                old = tl.load(old_state + request * RANK + feature, mask=feature < KNOWN, other=0.0)
                new = gate * old + (1.0 - gate) * tanh(candidate)
                tl.store(new_state + request * RANK + feature, new, mask=is_mine)
            rounded = round_to(value, features.dtype.element_ty)
            tl.store(features + request * RANK + feature, rounded, mask=is_mine)


@jit
def touch_table(
    w2: tl.tensor,
    token: tl.tensor,
    num_tokens: tl.tensor,
    RANK: tl.constexpr,
    LINES: tl.constexpr,
) -> None:
    """Rows of W2 that later programs read, into the L2."""
    PER_LINE: tl.constexpr = LINE_BYTES * 8 // w2.dtype.element_ty.primitive_bitwidth
    row = tl.minimum(token, num_tokens - 1).to(tl.int64) * RANK
    touch(w2 + row[:, None] + tl.minimum(tl.arange(0, LINES) * PER_LINE, RANK - 1)[None, :])


@jit
def vocabulary_kernel(
    base_logits: tl.tensor,  # [R, K, V]
    w2: tl.tensor,  # [V, RANK]
    w2_scales: tl.tensor,  # [V] of codes
    features: tl.tensor,  # [R, RANK]
    temperatures: tl.tensor,
    seeds: tl.tensor,
    positions: tl.tensor,
    logits: tl.tensor,  # [R, K, V]
    parts: tl.tensor,  # [4, R, blocks]
    step: tl.tensor,
    num_requests: tl.tensor,
    num_steps: tl.tensor,
    num_tokens: tl.tensor,
    RANK: tl.constexpr,
    CODED: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    AT_ONCE: tl.constexpr,
    LINES: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One block of tokens for every request: its rows of W2 are read once, and before the features
    are there."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < num_tokens
    column = tl.arange(0, BLOCK_RANK)
    if RANK > 0:
        of_table = tl.minimum(token, num_tokens - 1).to(tl.int64)[:, None] * RANK + column
        table = tl.load(w2 + of_table, mask=(column < RANK)[None, :], other=0)
        if CODED:
            row_scale = tl.load(w2_scales + tl.minimum(token, num_tokens - 1)).to(tl.float32)
        if DEPENDENT:
            for ahead in tl.static_range(1, AHEAD + 1):
                touch_table(w2, token + ahead * AT_ONCE * BLOCK, num_tokens, RANK, LINES)
    wait_for_previous(DEPENDENT)
    for request in range(num_requests):
        at = (request * num_steps + step).to(tl.int64) * num_tokens + token
        values = tl.load(base_logits + at, mask=inside, other=0.0).to(tl.float32)
        if RANK > 0:
            own = tl.load(features + request * RANK + column, mask=column < RANK, other=0.0)
            bias = tl.sum(table.to(tl.float32) * own.to(tl.float32)[None, :], axis=1)
            values += bias * row_scale if CODED else bias
        tl.store(logits + at, values, mask=inside)
        temperature = tl.load(temperatures + request)
        scaled = values / tl.where(temperature == 0, 1.0, temperature)
        scaled = tl.where(inside, scaled, float("-inf"))
        score = scaled
        if temperature > 0:
            position = tl.load(positions + request) + step + 1
            noise = gumbel(tl.load(seeds + request), position, tl.program_id(0) * BLOCK, BLOCK)
            score = scaled + noise
        best = tl.max(score, axis=0)
        winner = tl.min(tl.where(score == best, token, 0x7FFFFFFF), axis=0)
        largest = tl.max(scaled, axis=0)
        part = parts + request * tl.num_programs(0) + tl.program_id(0)
        stride = num_requests * tl.num_programs(0)
        tl.store(part, best)
        tl.store(part + stride, winner.to(tl.float32, bitcast=True))
        tl.store(part + 2 * stride, largest)
        tl.store(part + 3 * stride, tl.sum(tl.exp(scaled - largest), axis=0))
