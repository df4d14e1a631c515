"""Attention of the few new rows of each request over its pages of keys and values.

Each page is attended to on its own, a tile of keys after the other, and the pages' results are
added up in order: the sum of a row knows nothing of the other rows and requests of the pass.
"""

import math
from typing import Any

import torch

from dspark_kernels.backend import (
    jit,
    jit_unspecialized,
    next_power_of_2,
    tl,
    use_triton,
)
from dspark_kernels.builds import KernelBuild
from dspark_kernels.paged_cache import PAGE, PagedRows, gather_request
from dspark_kernels.rounding import product, round_to

SPLITS_AT_ONCE = 32  # pages whose results are added up in one step


def paged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
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
    num_kv_heads = keys.shape[1]
    group = num_heads // num_kv_heads
    sizes = sizes_of_a_block(group, head_dim, query.element_size())
    partial = query.new_empty(num_rows, num_heads, rows.num_splits, head_dim, dtype=torch.float32)
    stats = query.new_empty(2, num_rows, num_heads, rows.num_splits, dtype=torch.float32)
    where = (rows.starts, rows.row_starts)
    num_blocks = -(-rows.max_rows // sizes["BLOCK_ROWS"])
    paged_attention_kernel[(rows.num_requests * num_kv_heads, num_blocks, rows.num_splits)](
        query,
        keys,
        values,
        partial,
        stats[0],
        stats[1],
        tables,
        rows.slots,
        *where,
        scale,
        soft_cap,
        tables.stride(0),
        keys.stride(0),
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        PAGE=PAGE,
        CAUSAL=rows.causal,
        WINDOW=window,
        HAS_SOFT_CAP=soft_cap > 0,
        **sizes,
        num_warps=warps_of_a_block(sizes),
        num_stages=2,
    )
    out = query.new_empty(num_rows, num_heads * head_dim)
    combine_kernel[(rows.num_requests, rows.max_rows, num_heads)](
        partial,
        stats[0],
        stats[1],
        sinks,
        out,
        *where,
        rows.num_splits,
        NUM_HEADS=num_heads,
        HEAD_DIM=head_dim,
        BLOCK_DIM=sizes["BLOCK_DIM"],
        CHUNK=SPLITS_AT_ONCE,
        PAGE=PAGE,
        CAUSAL=rows.causal,
        WINDOW=window,
        HAS_SINKS=sinks is not None,
        num_warps=4,
    )
    return out


def sizes_of_a_block(group: int, head_dim: int, itemsize: int) -> dict[str, int]:
    """Rows that share one read of the keys, and keys of a tile: the model's, never the pass's.

    Two stages of keys and values take 64 KB of shared memory at most. Larger tiles of float32,
    which is multiplied without tensor cores, do not fit into the registers.
    """
    rows = max(8, 16 // group) if group <= 8 else max(64 // group, 1)
    block_dim = next_power_of_2(max(head_dim, 16))
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_DIM": block_dim,
        "BLOCK_ROWS": rows,
        "BLOCK_PAIRS": next_power_of_2(max(rows * group, 16)),
        "BLOCK_KEYS": 16 if itemsize == 4 else max(16, min(64, 16384 // (block_dim * itemsize))),
    }


def warps_of_a_block(sizes: dict[str, int]) -> int:
    """Enough that the sums of a block fit in their registers."""
    return 8 if sizes["BLOCK_PAIRS"] * sizes["BLOCK_DIM"] > 4096 else 4


def paged_attention_reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    rows: PagedRows,
    scale: float,
    *,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """As paged_attention, in torch."""
    group = query.shape[1] // keys.shape[1]
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


@jit
def paged_attention_kernel(
    query: tl.tensor,  # [N, heads, HEAD_DIM]
    keys: tl.tensor,  # [pages, NUM_KV_HEADS, PAGE, HEAD_DIM]
    values: tl.tensor,
    partial: tl.tensor,  # [N, heads, splits, HEAD_DIM]
    maxima: tl.tensor,  # [N, heads, splits], in powers of two
    sums: tl.tensor,  # [N, heads, splits]
    tables: tl.tensor,
    slots: tl.tensor,
    starts: tl.tensor,
    row_starts: tl.tensor,
    scale: tl.tensor,
    soft_cap: tl.tensor,
    table_stride: tl.tensor,
    page_stride: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PAGE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
) -> None:
    """One key head of one request, a block of its rows, one page.

    Pairs of row and query head share the keys; a key that a pair may not see adds an exact zero.
    """
    request = tl.program_id(0) // NUM_KV_HEADS
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    block_start = tl.program_id(1) * BLOCK_ROWS
    page_start = tl.program_id(2) * PAGE
    start = tl.load(starts + request)
    first_row = tl.load(row_starts + request)
    size = tl.load(row_starts + request + 1) - first_row
    block_end = tl.minimum(size, block_start + BLOCK_ROWS)
    end = tl.minimum(page_start + PAGE, start + (block_end if CAUSAL else size))
    begin = page_start
    if WINDOW > 0:
        seen_first = tl.maximum(start + block_start + 1 - WINDOW, page_start)
        begin = seen_first - (seen_first - page_start) % BLOCK_KEYS
    if (block_start < size) & (begin < end):
        pair = tl.arange(0, BLOCK_PAIRS)
        row = block_start + pair // GROUP
        is_live = (pair < BLOCK_ROWS * GROUP) & (row < size)
        position = start + row
        visible = position + 1 if CAUSAL else tl.zeros_like(position) + start + size
        pair_index = (first_row + row).to(tl.int64) * (NUM_KV_HEADS * GROUP)
        pair_index += kv_head * GROUP + pair % GROUP
        column = tl.arange(0, BLOCK_DIM)
        inside = column < HEAD_DIM
        both = is_live[:, None] & inside[None, :]
        at = pair_index[:, None] * HEAD_DIM + column[None, :]
        rotated = tl.load(query + at, mask=both, other=0.0)
        page = tl.load(tables + tl.load(slots + request) * table_stride + tl.program_id(2))
        base = page.to(tl.int64) * page_stride + kv_head * PAGE * HEAD_DIM
        total = tl.zeros((BLOCK_PAIRS, BLOCK_DIM), tl.float32)
        maximum = tl.full((BLOCK_PAIRS,), float("-inf"), tl.float32)
        weight_sum = tl.zeros((BLOCK_PAIRS,), tl.float32)
        for tile in range(begin, end, BLOCK_KEYS):
            key = tile + tl.arange(0, BLOCK_KEYS)
            source = base + (key - page_start)[:, None] * HEAD_DIM + column[None, :]
            cached = (key < end)[:, None] & inside[None, :]
            tile_keys = tl.load(keys + source, mask=cached, other=0.0)
            nothing = tl.zeros((BLOCK_PAIRS, BLOCK_KEYS), tl.float32)
            scores = product(rotated, tl.trans(tile_keys), nothing) * scale
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
            rounded = round_to(weights, tile_values.dtype)
            total = product(rounded, tile_values, total * shrink[:, None])
            maximum = raised
        split_index = pair_index * tl.num_programs(2) + tl.program_id(2)
        tl.store(maxima + split_index, maximum, mask=is_live)
        tl.store(sums + split_index, weight_sum, mask=is_live)
        tl.store(partial + split_index[:, None] * HEAD_DIM + column[None, :], total, mask=both)


@jit_unspecialized("num_splits")
def combine_kernel(
    partial: tl.tensor,  # [N, NUM_HEADS, splits, HEAD_DIM]
    maxima: tl.tensor,  # [N, NUM_HEADS, splits]
    sums: tl.tensor,
    sinks: tl.tensor,  # [NUM_HEADS]
    out: tl.tensor,  # [N, NUM_HEADS, HEAD_DIM]
    starts: tl.tensor,
    row_starts: tl.tensor,
    num_splits: tl.tensor,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    PAGE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
) -> None:
    """One head of one row: the results of its pages, added in chunks of a fixed size."""
    request = tl.program_id(0)
    row = tl.program_id(1)
    head = tl.program_id(2)
    first_row = tl.load(row_starts + request)
    size = tl.load(row_starts + request + 1) - first_row
    if row < size:
        start = tl.load(starts + request)
        visible = start + (row + 1 if CAUSAL else size)
        end = tl.cdiv(visible, PAGE)
        begin = 0
        if WINDOW > 0:
            begin = tl.maximum(start + row + 1 - WINDOW, 0) // PAGE
        column = tl.arange(0, BLOCK_DIM)
        inside = column < HEAD_DIM
        pair = (first_row + row).to(tl.int64) * NUM_HEADS + head
        total = tl.zeros((BLOCK_DIM,), tl.float32)
        weight_sum = 0.0
        maximum = float("-inf")
        if HAS_SINKS:
            maximum = tl.load(sinks + head).to(tl.float32) * LOG2_E
            weight_sum = 1.0
        for chunk in range(begin // CHUNK * CHUNK, end, CHUNK):
            split = chunk + tl.arange(0, CHUNK)
            present = (split >= begin) & (split < end)
            at = pair * num_splits + split
            peaks = tl.load(maxima + at, mask=present, other=float("-inf"))
            raised = tl.maximum(maximum, tl.max(peaks, axis=0))
            shrink = tl.exp2(maximum - raised)
            weights = tl.exp2(peaks - raised)
            both = present[:, None] & inside[None, :]
            pages = tl.load(
                partial + at[:, None] * HEAD_DIM + column[None, :], mask=both, other=0.0
            )
            total = total * shrink + tl.sum(pages * weights[:, None], axis=0)
            page_sums = tl.load(sums + at, mask=present, other=0.0)
            weight_sum = weight_sum * shrink + tl.sum(page_sums * weights, axis=0)
            maximum = raised
        dtype = out.dtype.element_ty
        tl.store(out + pair * HEAD_DIM + column, round_to(total / weight_sum, dtype), mask=inside)


# dtype, query heads, key heads, head_dim, variant of the attention
BUILDS: tuple[tuple[str, int, int, int, dict[str, Any]], ...] = (
    ("bf16", 32, 8, 128, {}),  # Qwen3-4B and 8B, Llama-3
    ("bf16", 40, 8, 128, {}),  # Qwen3-14B
    ("bf16", 32, 8, 128, {"CAUSAL": False}),  # a draft block
    ("bf16", 64, 8, 64, {"WINDOW": 128, "HAS_SINKS": True}),
    ("bf16", 8, 4, 256, {"WINDOW": 4096, "HAS_SOFT_CAP": True}),  # Gemma-shaped
    ("fp32", 9, 3, 64, {}),  # SmolLM-135M
    ("fp32", 32, 8, 128, {}),
)


def builds() -> list[KernelBuild]:
    return [build for shape in BUILDS for build in _builds_of(*shape)]


def _builds_of(
    dtype: str, num_heads: int, num_kv_heads: int, head_dim: int, asked: dict[str, Any]
) -> list[KernelBuild]:
    options = {"CAUSAL": True, "WINDOW": 0, "HAS_SOFT_CAP": False, "HAS_SINKS": False} | asked
    group, itemsize = num_heads // num_kv_heads, 2 if dtype == "bf16" else 4
    name = f"{dtype} {num_heads}:{num_kv_heads}x{head_dim} {' '.join(asked).lower()}".strip()
    sizes = sizes_of_a_block(group, head_dim, itemsize)
    attention = sizes | {"NUM_KV_HEADS": num_kv_heads, "GROUP": group, "PAGE": PAGE}
    combine: dict[str, Any] = {"NUM_HEADS": num_heads, "CHUNK": SPLITS_AT_ONCE, "PAGE": PAGE}
    combine |= {size: sizes[size] for size in ("HEAD_DIM", "BLOCK_DIM")}
    where = dict.fromkeys(("starts", "row_starts"), "*i32")
    partial = dict.fromkeys(("partial", "maxima", "sums"), "*fp32")
    cached = dict.fromkeys(("query", "keys", "values"), f"*{dtype}")
    tables = {"tables": "*i32", "slots": "*i32", "table_stride": "i32", "page_stride": "i32"}
    signature = cached | partial | where | tables | {"scale": "fp32", "soft_cap": "fp32"}
    combined = partial | where | {"out": f"*{dtype}", "num_splits": "i32"}
    if options["HAS_SINKS"]:
        combined["sinks"] = f"*{dtype}"
    else:
        combine["sinks"] = None
    attention |= {key: options[key] for key in ("CAUSAL", "WINDOW", "HAS_SOFT_CAP")}
    combine |= {key: options[key] for key in ("CAUSAL", "WINDOW", "HAS_SINKS")}
    return [
        KernelBuild(
            f"attention {name}",
            paged_attention_kernel,
            signature,
            attention,
            num_warps=warps_of_a_block(sizes),
            num_stages=2,
        ),
        KernelBuild(f"attention sum {name}", combine_kernel, combined, combine),
    ]
