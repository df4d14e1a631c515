"""Attention of the few new rows of each request over its pages of keys and values.

Positions are cut into splits, short ones first: each is attended to on its own, a tile of keys
after the other. The program that comes last adds the results of sixteen splits, and the last of all
adds those sums. What is added to what depends on positions alone: a row's bits know nothing of the
other rows and requests of the pass.
"""

import math
from typing import Any

import torch

from dspark_kernels.backend import (
    card_capability,
    jit,
    jit_unspecialized,
    next_power_of_2,
    tl,
    use_triton,
)
from dspark_kernels.builds import KernelBuild
from dspark_kernels.dependent_launch import launch_options, wait_for_previous
from dspark_kernels.kv_codes import (
    Cached,
    absent_scales,
    cache_arguments,
    cache_types,
    coded_bytes,
)
from dspark_kernels.last_arriver import arrival_counters, arrives_last
from dspark_kernels.paged_attention_splits import SHORT_SPLITS, combined_splits, split_at, split_of
from dspark_kernels.paged_cache import PAGE, PagedRows, gather_request
from dspark_kernels.rounding import product, round_to
from dspark_kernels.skinny_linear_kernels import byte_value

SPLITS_AT_ONCE = 16  # whose results are added up in one step


def paged_attention(
    query: torch.Tensor,
    keys: Cached,
    values: Cached,
    tables: torch.Tensor,
    rows: PagedRows,
    scale: float,
    *,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """query [N, heads, D]; keys, values [pages, kv_heads, PAGE, D]; tables [slots, P].

    window: how many positions a row sees back, itself included (0: all). soft_cap bounds the
    scores (0: none). sinks [heads] are scores of a key without a value. -> [N, heads * D].
    """
    if not use_triton(query):
        return paged_attention_reference(
            query, keys, values, tables, rows, scale, window=window, soft_cap=soft_cap, sinks=sinks
        )
    query = query.contiguous()
    num_rows, num_heads, head_dim = query.shape
    key, value = cache_arguments(keys), cache_arguments(values)
    num_kv_heads = key.rows.shape[1]
    group = num_heads // num_kv_heads
    sizes = sizes_of_a_block(group, head_dim, query.element_size())
    num_splits = num_splits_for(rows.num_pages)
    partial = query.new_empty(num_rows, num_heads, num_splits, head_dim, dtype=torch.float32)
    stats = query.new_empty(2, num_rows, num_heads, num_splits, dtype=torch.float32)
    out = query.new_empty(num_rows, num_heads * head_dim)
    num_groups = rows.num_requests * num_kv_heads
    num_blocks = -(-rows.max_rows // sizes["BLOCK_ROWS"])
    num_counters = num_groups * num_blocks * (-(-num_splits // SPLITS_AT_ONCE) + 1)
    paged_attention_kernel[(num_groups, num_blocks, num_splits)](
        query,
        key.rows,
        value.rows,
        key.scales,
        value.scales,
        partial,
        stats[0],
        stats[1],
        sinks,
        arrival_counters(query.device, num_counters),
        out,
        tables,
        rows.slots,
        rows.starts,
        rows.row_starts,
        scale,
        soft_cap,
        tables.stride(0),
        key.page_stride,
        KIND=key.kind,
        HEAD_STRIDE=key.head_stride,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        PAGE=PAGE,
        CHUNK=SPLITS_AT_ONCE,
        CAUSAL=rows.causal,
        WINDOW=window,
        HAS_SOFT_CAP=soft_cap > 0,
        HAS_SINKS=sinks is not None,
        **sizes,
        num_warps=warps_of_a_block(sizes, query.element_size()),
        num_stages=stages_at(card_capability(query.device), head_dim, query.element_size()),
        **launch_options(query.device),
    )
    return out


def num_splits_for(num_pages: int) -> int:
    """Splits of that many pages: a quarter of a page each in the first four pages."""
    short = int(SHORT_SPLITS.value) * 64 // PAGE
    return PAGE // 64 * min(num_pages, short) + max(num_pages - short, 0)


def stages_at(capability: int, head_dim: int, itemsize: int) -> int:
    """Three where a block may have 160 KB of shared memory, else two, or one where the compiler
    spills two (on sm_86 and 89). The stages change no sum."""
    if capability in (80, 90, 100):
        return 3
    return 1 if capability in (86, 89) and (itemsize == 4 or head_dim <= 64) else 2


def sizes_of_a_block(group: int, head_dim: int, itemsize: int) -> dict[str, int]:
    """Rows that share one read of the keys, and keys of a tile: the model's, never the pass's.

    A tile of keys or values takes 16 KB of shared memory at most. Larger tiles of float32, which is
    multiplied without tensor cores, do not fit into the registers. BLOCK_SUMS pairs at a time are
    added up over their splits.
    """
    rows = max(8, 16 // group) if group <= 8 else max(64 // group, 1)
    block_dim = next_power_of_2(max(head_dim, 16))
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_DIM": block_dim,
        "BLOCK_ROWS": rows,
        "BLOCK_PAIRS": next_power_of_2(max(rows * group, 16)),
        "BLOCK_KEYS": 16 if itemsize == 4 else max(16, min(64, 16384 // (block_dim * itemsize))),
        "BLOCK_SUMS": max(1, min(8, 1024 // block_dim)),
    }


def warps_of_a_block(sizes: dict[str, int], itemsize: int) -> int:
    """Enough that the sums of a block fit in their registers; of float32, which is multiplied
    without tensor cores, its operands too."""
    return 8 if sizes["BLOCK_PAIRS"] * sizes["BLOCK_DIM"] * itemsize > 8192 else 4


def paged_attention_reference(
    query: torch.Tensor,
    keys: Cached,
    values: Cached,
    tables: torch.Tensor,
    rows: PagedRows,
    scale: float,
    *,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """As paged_attention, in torch."""
    group = query.shape[1] // cache_arguments(keys).rows.shape[1]
    row_starts, starts = rows.row_starts.tolist(), rows.starts.tolist()
    out = torch.empty_like(query)
    for request, slot in enumerate(rows.slots.tolist()):
        mine = slice(row_starts[request], row_starts[request + 1])
        size, start = mine.stop - mine.start, starts[request]
        cached_keys, cached_values = (
            gather_request(cached, tables[slot], start + size).float().repeat_interleave(group, 0)
            for cached in (keys, values)
        )
        scores = query[mine].float().transpose(0, 1) @ cached_keys.transpose(1, 2) * scale
        if soft_cap:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        positions = torch.arange(start, start + size, device=query.device).unsqueeze(1)
        key_position = torch.arange(start + size, device=query.device)
        seen = (key_position <= positions) if rows.causal else key_position >= 0
        if window:
            seen = seen & (key_position > positions - window)
        scores = scores.masked_fill(~seen, float("-inf"))
        if sinks is not None:
            column = sinks.float().view(-1, 1, 1).expand(-1, size, 1)
            scores = torch.cat([scores, column], dim=-1)
        weights = scores.softmax(dim=-1)[..., : start + size]
        out[mine] = (weights @ cached_values).transpose(0, 1).to(query.dtype)
    return out.flatten(1)


LOG2_E = tl.constexpr(math.log2(math.e))


@jit_unspecialized("table_stride")
def paged_attention_kernel(
    query: tl.tensor,  # [N, heads, HEAD_DIM]
    keys: tl.tensor,  # [pages, NUM_KV_HEADS, PAGE, HEAD_DIM]
    values: tl.tensor,
    key_scales: tl.tensor,  # [pages, NUM_KV_HEADS, PAGE], of codes
    value_scales: tl.tensor,
    partial: tl.tensor,  # [N, heads, splits, HEAD_DIM]
    maxima: tl.tensor,  # [N, heads, splits], in powers of two
    sums: tl.tensor,  # [N, heads, splits]
    sinks: tl.tensor,  # [heads]
    counters: tl.tensor,
    out: tl.tensor,  # [N, heads, HEAD_DIM]
    tables: tl.tensor,
    slots: tl.tensor,
    starts: tl.tensor,
    row_starts: tl.tensor,
    scale: tl.tensor,
    soft_cap: tl.tensor,
    table_stride: tl.tensor,
    page_stride: tl.tensor,
    KIND: tl.constexpr,  # "": numbers
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
    WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """A program for each key head of a request, block of its rows, and split."""
    wait_for_previous(DEPENDENT)
    attend_split(
        tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(1),
        tl.num_programs(2), query, keys, values, key_scales, value_scales, partial,
        maxima, sums, sinks, counters, out, tables, slots, starts, row_starts, scale,
        soft_cap, table_stride, page_stride, KIND, HEAD_STRIDE, NUM_KV_HEADS, GROUP,
        HEAD_DIM, BLOCK_DIM, BLOCK_ROWS, BLOCK_PAIRS, BLOCK_KEYS, BLOCK_SUMS, PAGE,
        CHUNK, CAUSAL, WINDOW, HAS_SOFT_CAP, HAS_SINKS,
    )  # fmt: skip


@jit
def attend_split(
    group: tl.tensor,
    block: tl.tensor,
    split: tl.tensor,
    num_blocks: tl.tensor,
    num_splits: tl.tensor,
    query: tl.tensor,  # [N, heads, HEAD_DIM]
    keys: tl.tensor,  # [pages, NUM_KV_HEADS, PAGE, HEAD_DIM]
    values: tl.tensor,
    key_scales: tl.tensor,  # [pages, NUM_KV_HEADS, PAGE], of codes
    value_scales: tl.tensor,
    partial: tl.tensor,  # [N, heads, splits, HEAD_DIM]
    maxima: tl.tensor,  # [N, heads, splits], in powers of two
    sums: tl.tensor,  # [N, heads, splits]
    sinks: tl.tensor,  # [heads]
    counters: tl.tensor,
    out: tl.tensor,  # [N, heads, HEAD_DIM]
    tables: tl.tensor,
    slots: tl.tensor,
    starts: tl.tensor,
    row_starts: tl.tensor,
    scale: tl.tensor,
    soft_cap: tl.tensor,
    table_stride: tl.tensor,
    page_stride: tl.tensor,
    KIND: tl.constexpr,  # "": numbers
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
    WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
) -> None:
    """One key head of one request, a block of its rows, one split.

    Pairs of row and query head share the keys; a key that a pair may not see adds an exact zero.
    """
    request = group // NUM_KV_HEADS
    kv_head = group % NUM_KV_HEADS
    block_start = block * BLOCK_ROWS
    start = tl.load(starts + request).to(tl.int32)
    first_row = tl.load(row_starts + request)
    size = tl.load(row_starts + request + 1) - first_row
    block_end = tl.minimum(size, block_start + BLOCK_ROWS)
    visible_end = start + (block_end if CAUSAL else size)
    first_split = 0
    if WINDOW > 0:
        seen_first = tl.maximum(start + block_start + 1 - WINDOW, 0)
        first_split = split_of(seen_first, PAGE)
    # an idle lane may be longer than the splits of this pass
    last_split = tl.minimum(split_of(visible_end - 1, PAGE), num_splits - 1)
    if (block_start < size) & (first_split <= split) & (split <= last_split):
        split_start, split_size = split_at(split, PAGE)
        begin, end = split_start, tl.minimum(split_start + split_size, visible_end)
        if WINDOW > 0:
            begin = tl.maximum(seen_first, split_start)
            begin -= (begin - split_start) % BLOCK_KEYS
        page_start = split_start // PAGE * PAGE
        pair = tl.arange(0, BLOCK_PAIRS)
        row = block_start + pair // GROUP
        is_live = (pair < BLOCK_ROWS * GROUP) & (row < size)
        position = start + row
        visible = position + 1 if CAUSAL else tl.zeros_like(position) + start + size
        first_pair = (first_row + block_start).to(tl.int64) * (NUM_KV_HEADS * GROUP)
        first_pair += kv_head * GROUP
        pair_index = first_pair + pair // GROUP * (NUM_KV_HEADS * GROUP) + pair % GROUP
        column = tl.arange(0, BLOCK_DIM)
        inside = column < HEAD_DIM
        both = is_live[:, None] & inside[None, :]
        at = pair_index[:, None] * HEAD_DIM + column[None, :]
        rotated = tl.load(query + at, mask=both, other=0.0)
        page = tl.load(tables + tl.load(slots + request) * table_stride + page_start // PAGE)
        base = page.to(tl.int64) * page_stride + kv_head * HEAD_STRIDE
        total = tl.zeros((BLOCK_PAIRS, BLOCK_DIM), tl.float32)
        maximum = tl.full((BLOCK_PAIRS,), float("-inf"), tl.float32)
        weight_sum = tl.zeros((BLOCK_PAIRS,), tl.float32)
        for tile in range(begin, end, BLOCK_KEYS):
            key = tile + tl.arange(0, BLOCK_KEYS)
            source = base + (key - page_start)[:, None] * HEAD_DIM + column[None, :]
            cached = (key < end)[:, None] & inside[None, :]
            tile_keys = tl.load(keys + source, mask=cached, other=0.0)
            nothing = tl.zeros((BLOCK_PAIRS, BLOCK_KEYS), tl.float32)
            if KIND != "":
                at_scale = base // 4 + key - page_start
                tile_keys = byte_value(tile_keys, KIND, rotated.dtype)
            scores = product(rotated, tl.trans(tile_keys), nothing) * scale
            if KIND != "":
                scores *= tl.load(key_scales + at_scale, mask=key < end, other=0.0)[None, :]
            if HAS_SOFT_CAP:
                # tanh, by the exponential of a number that is never positive
                fall = tl.exp(-2.0 * tl.abs(scores) / soft_cap)
                size_of_tanh = (1.0 - fall) / (1.0 + fall)
                scores = soft_cap * tl.where(scores < 0, -size_of_tanh, size_of_tanh)
            seen = key[None, :] < visible[:, None]
            if WINDOW > 0:
                seen &= key[None, :] > (position - WINDOW)[:, None]
            scores = tl.where(seen, scores * LOG2_E, float("-inf"))
            raised = tl.maximum(maximum, tl.max(scores, axis=1))
            finite = tl.where(raised == float("-inf"), 0.0, raised)
            weights = tl.exp2(scores - finite[:, None])
            shrink = tl.exp2(maximum - finite)
            weight_sum = weight_sum * shrink + tl.sum(weights, axis=1)
            tile_values = tl.load(values + source, mask=cached, other=0.0)
            if KIND != "":
                weights *= tl.load(value_scales + at_scale, mask=key < end, other=0.0)[None, :]
                tile_values = byte_value(tile_values, KIND, rotated.dtype)
            rounded = round_to(weights, rotated.dtype)
            total = product(rounded, tile_values, total * shrink[:, None])
            maximum = raised
        split_index = pair_index * num_splits + split
        tl.store(maxima + split_index, maximum, mask=is_live)
        tl.store(sums + split_index, weight_sum, mask=is_live)
        tl.store(partial + split_index[:, None] * HEAD_DIM + column[None, :], total, mask=both)

        num_pairs = (block_end - block_start) * GROUP
        num_chunks = tl.cdiv(num_splits, CHUNK)
        of_block = counters + (group * num_blocks + block) * (num_chunks + 1)
        chunk = split // CHUNK
        first_chunk, last_chunk = first_split // CHUNK, last_split // CHUNK
        first_of_chunk = tl.maximum(first_split, chunk * CHUNK)
        last_of_chunk = tl.minimum(last_split, chunk * CHUNK + CHUNK - 1)
        if arrives_last(of_block + chunk, last_of_chunk - first_of_chunk + 1):
            # all splits at once, or the sum of a chunk in the place of its first split
            combined_splits(
                partial, maxima, sums, sinks, out, first_pair, num_pairs, num_splits,
                first_of_chunk, last_of_chunk, 1, first_of_chunk, first_chunk == last_chunk,
                NUM_KV_HEADS, GROUP, HEAD_DIM, BLOCK_DIM, BLOCK_SUMS, CHUNK, HAS_SINKS,
            )  # fmt: skip
            if first_chunk < last_chunk:  # noqa: SIM102 - `and` would take a ticket in any case
                if arrives_last(of_block + num_chunks, last_chunk - first_chunk + 1):
                    combined_splits(
                        partial, maxima, sums, sinks, out, first_pair, num_pairs, num_splits,
                        first_chunk, last_chunk, CHUNK, first_split, True,
                        NUM_KV_HEADS, GROUP, HEAD_DIM, BLOCK_DIM, BLOCK_SUMS, CHUNK, HAS_SINKS,
                    )  # fmt: skip


# dtype, query heads, key heads, head_dim, variant of the attention
BUILDS: tuple[tuple[str, int, int, int, dict[str, Any]], ...] = (
    ("bf16", 32, 8, 128, {}),  # Qwen3-4B and 8B, Llama-3
    ("bf16", 40, 8, 128, {}),  # Qwen3-14B
    ("bf16", 32, 8, 128, {"CAUSAL": False}),  # a draft block
    ("bf16", 64, 8, 64, {"WINDOW": 128, "HAS_SINKS": True}),
    ("bf16", 8, 4, 256, {"WINDOW": 4096, "HAS_SOFT_CAP": True}),  # Gemma-shaped
    ("fp32", 9, 3, 64, {}),  # SmolLM-135M
    ("fp32", 32, 8, 128, {}),
    ("bf16", 32, 8, 128, {"KIND": "int8"}),
    ("bf16", 32, 8, 128, {"KIND": "fp8_bits"}),
)


def builds() -> list[KernelBuild]:
    return [_build_of(*shape) for shape in BUILDS]


def _build_of(
    dtype: str, num_heads: int, num_kv_heads: int, head_dim: int, asked: dict[str, Any]
) -> KernelBuild:
    options: dict[str, Any] = {"CAUSAL": True, "WINDOW": 0, "HAS_SOFT_CAP": False}
    options |= {"HAS_SINKS": False, "KIND": ""} | asked
    kind = options["KIND"]
    group, itemsize = num_heads // num_kv_heads, 2 if dtype == "bf16" else 4
    words = " ".join(v if isinstance(v, str) else k for k, v in asked.items()).lower()
    name = f"{dtype} {num_heads}:{num_kv_heads}x{head_dim} {words}".strip()
    sizes = sizes_of_a_block(group, head_dim, itemsize)
    constants: dict[str, Any] = {"NUM_KV_HEADS": num_kv_heads, "GROUP": group, "PAGE": PAGE}
    constants |= sizes | options
    constants |= {"CHUNK": SPLITS_AT_ONCE, "DEPENDENT": True}
    constants |= {"HEAD_STRIDE": PAGE * (coded_bytes(head_dim) if kind else head_dim)}
    constants |= absent_scales(kind)
    signature = dict.fromkeys(("query", "out"), f"*{dtype}") | cache_types(kind, dtype)
    signature |= dict.fromkeys(("partial", "maxima", "sums"), "*fp32")
    signature |= dict.fromkeys(("tables", "slots", "starts", "row_starts", "counters"), "*i32")
    signature |= {"table_stride": "i32", "page_stride": "i32", "scale": "fp32", "soft_cap": "fp32"}
    if options["HAS_SINKS"]:
        signature["sinks"] = f"*{dtype}"
    else:
        constants["sinks"] = None
    return KernelBuild(
        f"attention {name}",
        paged_attention_kernel,
        signature,
        constants,
        num_warps=warps_of_a_block(sizes, itemsize),
        stages_at=lambda capability: stages_at(capability, head_dim, itemsize),
    )
