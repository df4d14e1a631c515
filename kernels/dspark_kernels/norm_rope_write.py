"""Norms of query and key, RoPE, and the write of keys and values into the paged pool, in one."""

from typing import NamedTuple

import torch

from dspark_kernels.backend import jit, next_power_of_2, tl, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.dependent_launch import launch_options, wait_for_previous
from dspark_kernels.kv_codes import (
    Cached,
    absent_scales,
    cache_arguments,
    cache_types,
    code_of,
    coded_bytes,
    row_scale,
)
from dspark_kernels.norm import rms_norm_reference
from dspark_kernels.paged_cache import PAGE, PagedRows, write_rows
from dspark_kernels.paired_sum import paired_sum, squared
from dspark_kernels.rope import apply_rope
from dspark_kernels.rounding import round_to


class HeadNorms(NamedTuple):
    """Weights [D] of the norms over each head of query and key (Qwen3)."""

    query: torch.Tensor
    key: torch.Tensor
    eps: float


def norm_rope_write(
    qkv: torch.Tensor,
    keys: Cached,
    values: Cached,
    tables: torch.Tensor,
    rows: PagedRows,
    rotary: tuple[torch.Tensor, torch.Tensor] | None,
    norms: HeadNorms | None,
) -> torch.Tensor:
    """qkv [N, heads + 2 kv_heads, D]; keys, values [pages, kv_heads, PAGE, D]; tables [slots, P];
    rotary cos and sin [positions, D], None if the heads are already rotated.

    -> queries [N, heads, D]; heads may be 0, as for a drafter's context.
    """
    if not use_triton(qkv):
        return norm_rope_write_reference(qkv, keys, values, tables, rows, rotary, norms)
    num_rows, num_all_heads, head_dim = qkv.shape
    key, value = cache_arguments(keys), cache_arguments(values)
    num_kv_heads = key.rows.shape[1]
    num_heads = num_all_heads - 2 * num_kv_heads
    qkv = qkv.contiguous()
    query: torch.Tensor = qkv.new_empty(num_rows, num_heads, head_dim)
    cos, sin = rotary or (None, None)
    norm_rope_write_kernel[(rows.num_requests, rows.max_rows, num_all_heads)](
        qkv,
        query,
        key.rows,
        value.rows,
        key.scales,
        value.scales,
        tables,
        rows.slots,
        rows.starts,
        rows.row_starts,
        cos,
        sin,
        norms.query if norms else None,
        norms.key if norms else None,
        norms.eps if norms else 0.0,
        tables.stride(0),
        key.page_stride,
        KIND=key.kind,
        HEAD_STRIDE=key.head_stride,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK=next_power_of_2(head_dim // 2),
        PAGE=PAGE,
        HAS_ROPE=rotary is not None,
        HAS_NORM=norms is not None,
        num_warps=1,
        **launch_options(qkv.device),
    )
    return query


def norm_rope_write_reference(
    qkv: torch.Tensor,
    keys: Cached,
    values: Cached,
    tables: torch.Tensor,
    rows: PagedRows,
    rotary: tuple[torch.Tensor, torch.Tensor] | None,
    norms: HeadNorms | None,
) -> torch.Tensor:
    """As norm_rope_write, in torch."""
    num_kv_heads = cache_arguments(keys).rows.shape[1]
    num_heads = qkv.shape[1] - 2 * num_kv_heads
    query, key, value = qkv.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    if norms:
        query = rms_norm_reference(query, norms.query, norms.eps)
        key = rms_norm_reference(key, norms.key, norms.eps)
    if rotary:
        cos, sin = (table[rows.positions()].unsqueeze(1) for table in rotary)
        query, key = apply_rope(query, cos, sin), apply_rope(key, cos, sin)
    write_rows(rows, tables, (keys, values), (key, value))
    out: torch.Tensor = query
    return out


@jit
def norm_rope_write_kernel(
    qkv: tl.tensor,  # [N, NUM_HEADS + 2 NUM_KV_HEADS, HEAD_DIM]
    query: tl.tensor,  # [N, NUM_HEADS, HEAD_DIM]
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
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    eps: tl.tensor,
    table_stride: tl.tensor,
    page_stride: tl.tensor,
    KIND: tl.constexpr,  # "": numbers
    HEAD_STRIDE: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,  # of half a head
    PAGE: tl.constexpr,
    HAS_ROPE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """A program for each request, row of a request, and head."""
    wait_for_previous(DEPENDENT)
    write_head(
        tl.program_id(0), tl.program_id(1), tl.program_id(2), qkv, query, keys, values,
        key_scales, value_scales, tables, slots, starts, row_starts, cos, sin,
        query_norm, key_norm, eps, table_stride, page_stride, KIND, HEAD_STRIDE,
        NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK, PAGE, HAS_ROPE, HAS_NORM,
    )  # fmt: skip


@jit
def write_head(
    request: tl.tensor,
    step: tl.tensor,
    head: tl.tensor,
    qkv: tl.tensor,  # [N, NUM_HEADS + 2 NUM_KV_HEADS, HEAD_DIM]
    query: tl.tensor,  # [N, NUM_HEADS, HEAD_DIM]
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
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    eps: tl.tensor,
    table_stride: tl.tensor,
    page_stride: tl.tensor,
    KIND: tl.constexpr,  # "": numbers
    HEAD_STRIDE: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,  # of half a head
    PAGE: tl.constexpr,
    HAS_ROPE: tl.constexpr,
    HAS_NORM: tl.constexpr,
) -> None:
    """One head of one row: of `request` its row `step`."""
    HALF: tl.constexpr = HEAD_DIM // 2
    dtype = qkv.dtype.element_ty
    row = tl.load(row_starts + request) + step
    if row < tl.load(row_starts + request + 1):
        position = tl.load(starts + request).to(tl.int32) + step
        column = tl.arange(0, BLOCK)
        inside = column < HALF
        source = qkv + (row.to(tl.int64) * (NUM_HEADS + 2 * NUM_KV_HEADS) + head) * HEAD_DIM
        first = tl.load(source + column, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(source + HALF + column, mask=inside, other=0.0).to(tl.float32)
        if head < NUM_HEADS + NUM_KV_HEADS:
            if HAS_NORM:
                square = paired_sum(tl.fma(second, second, squared(first)), BLOCK)
                scale = tl.rsqrt(square / HEAD_DIM + eps)
                weight = query_norm if head < NUM_HEADS else key_norm
                upper = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
                lower = tl.load(weight + HALF + column, mask=inside, other=0.0).to(tl.float32)
                first = round_to(first * scale, dtype).to(tl.float32) * upper
                second = round_to(second * scale, dtype).to(tl.float32) * lower
                first = round_to(first, dtype).to(tl.float32)
                second = round_to(second, dtype).to(tl.float32)
            if HAS_ROPE:
                at = position.to(tl.int64) * HEAD_DIM + column
                cosine = tl.load(cos + at, mask=inside, other=0.0).to(tl.float32)
                sine = tl.load(sin + at, mask=inside, other=0.0).to(tl.float32)
                turned = tl.fma(first, cosine, -second * sine)
                second = tl.fma(second, cosine, first * sine)
                first = turned
        first, second = round_to(first, dtype), round_to(second, dtype)
        if head < NUM_HEADS:
            asked = query + (row.to(tl.int64) * NUM_HEADS + head) * HEAD_DIM
            tl.store(asked + column, first, mask=inside)
            tl.store(asked + HALF + column, second, mask=inside)
        else:
            is_key = head < NUM_HEADS + NUM_KV_HEADS
            kv_head = head - NUM_HEADS - (0 if is_key else NUM_KV_HEADS)
            slot = tl.load(slots + request)
            page = tl.load(tables + slot * table_stride + position // PAGE).to(tl.int64)
            base = page * page_stride + kv_head * HEAD_STRIDE
            target = (keys if is_key else values) + base + position % PAGE * HEAD_DIM
            if KIND == "":
                tl.store(target + column, first, mask=inside)
                tl.store(target + HALF + column, second, mask=inside)
            else:
                upper_row, lower_row = first.to(tl.float32), second.to(tl.float32)
                row_scaled_by = row_scale(upper_row, lower_row, KIND)
                scales = (key_scales if is_key else value_scales) + base // 4
                tl.store(scales + position % PAGE, row_scaled_by)
                upper_codes = code_of(upper_row / row_scaled_by, KIND)
                lower_codes = code_of(lower_row / row_scaled_by, KIND)
                tl.store(target + column, upper_codes, mask=inside)
                tl.store(target + HALF + column, lower_codes, mask=inside)


def builds() -> list[KernelBuild]:
    kernels = []
    for dtype, num_heads, has_norm, kind in (
        ("bf16", 32, True, ""),
        ("bf16", 0, True, ""),
        ("fp32", 32, False, ""),
        ("bf16", 32, True, "int8"),
        ("bf16", 32, True, "fp8_bits"),
    ):
        tensors = ["qkv", "query", "cos", "sin"]
        signature = {name: "*i32" for name in ("tables", "slots", "starts", "row_starts")}
        signature |= cache_types(kind, dtype)
        signature |= {"eps": "fp32", "table_stride": "i32", "page_stride": "i32"}
        sizes = {"NUM_HEADS": num_heads, "NUM_KV_HEADS": 8, "HEAD_DIM": 128, "BLOCK": 64}
        constexprs: dict[str, int | str | None] = {
            **absent_scales(kind),
            **sizes,
            "KIND": kind,
            "HEAD_STRIDE": PAGE * (coded_bytes(128) if kind else 128),
            "PAGE": PAGE,
            "HAS_ROPE": True,
            "HAS_NORM": has_norm,
            "DEPENDENT": True,
        }
        if has_norm:
            tensors += ["query_norm", "key_norm"]
        else:
            constexprs |= {"query_norm": None, "key_norm": None}
        signature |= dict.fromkeys(tensors, f"*{dtype}")
        name = f"norm_rope_write {dtype} {num_heads} heads {kind}".strip()
        kernel = norm_rope_write_kernel
        kernels.append(KernelBuild(name, kernel, signature, constexprs, num_warps=1))
    return kernels
