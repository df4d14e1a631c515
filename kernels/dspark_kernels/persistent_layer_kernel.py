"""The kernel of persistent_layer.py: the phases of a decoder layer, one after the other.

Each phase is the work of a kernel of its own elsewhere, by the same functions, so that every sum is
the same. The programs take items of it in turn, and meet before the next phase.
"""

from dspark_kernels.backend import jit, jit_unspecialized, tl
from dspark_kernels.dependent_launch import let_next_start, wait_alone
from dspark_kernels.grid_barrier import meet_others
from dspark_kernels.norm import normed_row
from dspark_kernels.norm_rope_write import write_head
from dspark_kernels.paged_attention import attend_split
from dspark_kernels.skinny_linear_kernels import skinny_part, touch_part

NUM_PHASES = 6
WHOLE = tl.constexpr(-1)  # instead of one phase: all, with meetings between them


@jit
def turns_for(num_items: tl.tensor) -> tl.tensor:
    """How many items are this program's: its own number, and every further one that many on."""
    return tl.cdiv(num_items - tl.program_id(0), tl.num_programs(0))


@jit
def touch_item(
    item: tl.tensor,
    codes: tl.tensor,
    num_outputs: tl.tensor,
    num_columns: tl.tensor,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LINES: tl.constexpr,
) -> None:
    """The first lines of an item of a product, if there is one of this number, into the L2."""
    num_blocks = tl.cdiv(num_outputs, BLOCK_N)
    if item < num_blocks * NUM_SPLITS:
        touch_part(
            item % num_blocks, item // num_blocks, codes, num_outputs, num_columns,
            KIND, GATED, NUM_SPLITS, BLOCK_N, BLOCK_K, LINES,
        )  # fmt: skip


@jit
def touch_ahead(
    codes: tl.tensor,
    num_outputs: tl.tensor,
    num_columns: tl.tensor,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LINES: tl.constexpr,
    AHEAD: tl.constexpr,
) -> None:
    """The weights of this program's first items of the next product, which wait for nobody."""
    for turn in tl.static_range(AHEAD):
        touch_item(
            tl.program_id(0) + turn * tl.num_programs(0), codes, num_outputs, num_columns,
            KIND, GATED, NUM_SPLITS, BLOCK_N, BLOCK_K, LINES,
        )  # fmt: skip


@jit
def norm_rows(
    x: tl.tensor,  # [num_rows, WIDTH]
    weight: tl.tensor,
    normed: tl.tensor,  # [num_rows, WIDTH], this program's own
    tap: tl.tensor,
    num_rows: tl.tensor,
    eps: tl.tensor,
    tap_stride: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_TAP: tl.constexpr,
) -> None:
    """Every program norms all rows for itself, which takes less time than another meeting."""
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    for row in tl.range(0, num_rows, num_stages=1):
        values = tl.load(x + row * WIDTH + column, mask=inside, other=0.0)
        if HAS_TAP:
            is_told = column < tl.where(tl.program_id(0) == 0, WIDTH, 0)
            tl.store(tap + row * tap_stride + column, values, mask=is_told)
        row_normed = normed_row(
            values.to(tl.float32), weight, column, eps, WIDTH, x.dtype.element_ty
        )
        tl.store(normed + row * WIDTH + column, row_normed, mask=inside)
    tl.debug_barrier()


@jit
def multiply(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    residual: tl.tensor,
    parts: tl.tensor,
    counters: tl.tensor,
    out: tl.tensor,
    num_rows: tl.tensor,
    num_outputs: tl.tensor,
    num_columns: tl.tensor,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr,
    GATED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    EVEN_K: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LINES: tl.constexpr,
    AHEAD: tl.constexpr,
    TOUCHES: tl.constexpr,
    next_codes: tl.tensor,
    next_outputs: tl.tensor,
    next_columns: tl.tensor,
    NEXT_GATED: tl.constexpr,
    NEXT_SPLITS: tl.constexpr,
    NEXT_LINES: tl.constexpr,
    NEXT_AHEAD: tl.constexpr,
    STARTS_NEXT: tl.constexpr,
) -> None:
    """This program's blocks of outputs and parts of K. Memory is kept busy to the end: at its last
    item a program asks for the next product's weights (none: NEXT_AHEAD is 0), or lets the next
    launch ask for its own."""
    num_blocks = tl.cdiv(num_outputs, BLOCK_N)
    turns = turns_for(num_blocks * NUM_SPLITS)
    for turn in tl.range(0, turns, num_stages=1):
        item = tl.program_id(0) + turn * tl.num_programs(0)
        if TOUCHES:
            if turn == turns - 1:
                let_next_start(STARTS_NEXT)
                touch_ahead(
                    next_codes, next_outputs, next_columns, KIND, NEXT_GATED, NEXT_SPLITS,
                    BLOCK_N, BLOCK_K, NEXT_LINES, NEXT_AHEAD,
                )  # fmt: skip
            touch_item(
                item + AHEAD * tl.num_programs(0), codes, num_outputs, num_columns,
                KIND, GATED, NUM_SPLITS, BLOCK_N, BLOCK_K, LINES,
            )  # fmt: skip
        skinny_part(
            item % num_blocks, item // num_blocks, x, codes, scales, zeros, None, residual,
            parts, counters, out, num_rows, num_outputs, num_columns, KIND, GROUP,
            ROWS_PER_SCALE, GATED, False, HAS_RESIDUAL, EVEN_K, NUM_SPLITS, 1, BLOCK_N, BLOCK_K,
        )  # fmt: skip


@jit_unspecialized("table_stride")
def persistent_layer_kernel(
    x: tl.tensor,  # [num_rows, HIDDEN], the residual stream
    middle: tl.tensor,  # the same behind the attention
    out: tl.tensor,  # the same behind the layer
    tap: tl.tensor,
    normed: tl.tensor,  # [programs, num_rows, HIDDEN]
    qkv: tl.tensor,
    query: tl.tensor,
    attended: tl.tensor,
    inner: tl.tensor,  # [num_rows, INNER]
    parts: tl.tensor,
    partial: tl.tensor,
    maxima: tl.tensor,
    sums: tl.tensor,
    counters: tl.tensor,
    barrier: tl.tensor,
    input_norm: tl.tensor,
    mlp_norm: tl.tensor,
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    qkv_codes: tl.tensor,
    qkv_scales: tl.tensor,
    qkv_zeros: tl.tensor,
    output_codes: tl.tensor,
    output_scales: tl.tensor,
    output_zeros: tl.tensor,
    gate_up_codes: tl.tensor,
    gate_up_scales: tl.tensor,
    gate_up_zeros: tl.tensor,
    down_codes: tl.tensor,
    down_scales: tl.tensor,
    down_zeros: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    tables: tl.tensor,
    slots: tl.tensor,
    starts: tl.tensor,
    row_starts: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    eps: tl.tensor,
    head_eps: tl.tensor,
    scale: tl.tensor,
    num_rows: tl.tensor,
    num_requests: tl.tensor,
    max_rows: tl.tensor,
    num_splits: tl.tensor,
    tap_stride: tl.tensor,
    table_stride: tl.tensor,
    page_stride: tl.tensor,
    PHASE: tl.constexpr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    NORM_BLOCK: tl.constexpr,
    KIND: tl.constexpr,  # of the weights
    WEIGHT_GROUP: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    QKV_SPLITS: tl.constexpr,
    QKV_LINES: tl.constexpr,
    QKV_AHEAD: tl.constexpr,
    OUTPUT_SPLITS: tl.constexpr,
    OUTPUT_LINES: tl.constexpr,
    OUTPUT_AHEAD: tl.constexpr,
    GATE_UP_SPLITS: tl.constexpr,
    GATE_UP_LINES: tl.constexpr,
    GATE_UP_AHEAD: tl.constexpr,
    DOWN_SPLITS: tl.constexpr,
    DOWN_LINES: tl.constexpr,
    DOWN_AHEAD: tl.constexpr,
    CACHE_KIND: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_SUMS: tl.constexpr,
    PAGE: tl.constexpr,
    CHUNK: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_HEAD_NORM: tl.constexpr,
    HAS_TAP: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """PHASE: one of six, or WHOLE. Only whole do programs meet, and fetch weights early."""
    IS_WHOLE: tl.constexpr = PHASE == WHOLE
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    ALL_HEADS: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    own = normed + (program * num_rows).to(tl.int64) * HIDDEN
    if IS_WHOLE:
        touch_ahead(
            qkv_codes, ALL_HEADS * HEAD_DIM, HIDDEN,
            KIND, False, QKV_SPLITS, BLOCK_N, BLOCK_K, QKV_LINES, QKV_AHEAD,
        )  # fmt: skip
    wait_alone(DEPENDENT)

    if IS_WHOLE or PHASE == 0:
        norm_rows(x, input_norm, own, tap, num_rows, eps, tap_stride, HIDDEN, NORM_BLOCK, HAS_TAP)
        multiply(
            own, qkv_codes, qkv_scales, qkv_zeros, None, parts, counters, qkv, num_rows,
            ALL_HEADS * HEAD_DIM, HIDDEN, KIND, WEIGHT_GROUP, ROWS_PER_SCALE, False, False,
            EVEN_K, QKV_SPLITS, BLOCK_N, BLOCK_K, QKV_LINES, QKV_AHEAD, IS_WHOLE,
            output_codes, HIDDEN, NUM_HEADS * HEAD_DIM, False, OUTPUT_SPLITS, OUTPUT_LINES,
            OUTPUT_AHEAD, False,
        )  # fmt: skip
    if IS_WHOLE:
        meet_others(barrier)

    if IS_WHOLE or PHASE == 1:
        num_heads_of_rows = num_requests * max_rows * ALL_HEADS
        for turn in tl.range(0, turns_for(num_heads_of_rows), num_stages=1):
            item = program + turn * num_programs
            row = item // ALL_HEADS
            write_head(
                row // max_rows, row % max_rows, item % ALL_HEADS, qkv, query, keys, values,
                key_scales, value_scales, tables, slots, starts, row_starts, cos, sin,
                query_norm, key_norm, head_eps, table_stride, page_stride, CACHE_KIND,
                HEAD_STRIDE, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_DIM // 2, PAGE, True,
                HAS_HEAD_NORM,
            )  # fmt: skip
    if IS_WHOLE:  # the longest time without a product has room for the weights of two
        touch_ahead(
            gate_up_codes, INNER, HIDDEN,
            KIND, True, GATE_UP_SPLITS, BLOCK_N, BLOCK_K, GATE_UP_LINES, GATE_UP_AHEAD,
        )  # fmt: skip
        meet_others(barrier)

    if IS_WHOLE or PHASE == 2:
        num_groups, num_blocks = num_requests * NUM_KV_HEADS, tl.cdiv(max_rows, BLOCK_ROWS)
        num_items = num_groups * num_blocks * num_splits
        for turn in tl.range(0, turns_for(num_items), num_stages=1):
            item = program + turn * num_programs
            block = item // num_groups
            attend_split(
                item % num_groups, block % num_blocks, block // num_blocks, num_blocks,
                num_splits, query, keys, values, key_scales, value_scales, partial, maxima,
                sums, None, counters, attended, tables, slots, starts, row_starts, scale, 0.0,
                table_stride, page_stride, CACHE_KIND, HEAD_STRIDE, NUM_KV_HEADS, GROUP,
                HEAD_DIM, BLOCK_DIM, BLOCK_ROWS, BLOCK_PAIRS, BLOCK_KEYS, BLOCK_SUMS, PAGE,
                CHUNK, CAUSAL, 0, False, False,
            )  # fmt: skip
    if IS_WHOLE:
        meet_others(barrier)

    if IS_WHOLE or PHASE == 3:
        multiply(
            attended, output_codes, output_scales, output_zeros, x, parts, counters, middle,
            num_rows, HIDDEN, NUM_HEADS * HEAD_DIM, KIND, WEIGHT_GROUP, ROWS_PER_SCALE, False,
            True, EVEN_K, OUTPUT_SPLITS, BLOCK_N, BLOCK_K, OUTPUT_LINES, OUTPUT_AHEAD, IS_WHOLE,
            gate_up_codes, INNER, HIDDEN, True, GATE_UP_SPLITS, GATE_UP_LINES, 0, False,
        )  # fmt: skip
    if IS_WHOLE:
        meet_others(barrier)

    if IS_WHOLE or PHASE == 4:
        norm_rows(middle, mlp_norm, own, None, num_rows, eps, 0, HIDDEN, NORM_BLOCK, False)
        multiply(
            own, gate_up_codes, gate_up_scales, gate_up_zeros, None, parts, counters, inner,
            num_rows, INNER, HIDDEN, KIND, WEIGHT_GROUP, ROWS_PER_SCALE, True, False,
            EVEN_K, GATE_UP_SPLITS, BLOCK_N, BLOCK_K, GATE_UP_LINES, GATE_UP_AHEAD, IS_WHOLE,
            down_codes, HIDDEN, INNER, False, DOWN_SPLITS, DOWN_LINES, DOWN_AHEAD,
            False,
        )  # fmt: skip
    if IS_WHOLE:
        meet_others(barrier)

    if IS_WHOLE or PHASE == 5:
        multiply(
            inner, down_codes, down_scales, down_zeros, middle, parts, counters, out,
            num_rows, HIDDEN, INNER, KIND, WEIGHT_GROUP, ROWS_PER_SCALE, False, True,
            EVEN_K, DOWN_SPLITS, BLOCK_N, BLOCK_K, DOWN_LINES, DOWN_AHEAD, IS_WHOLE,
            qkv_codes, ALL_HEADS * HEAD_DIM, HIDDEN, False, QKV_SPLITS, QKV_LINES, 0,
            DEPENDENT,
        )  # fmt: skip
