"""Attention over pages against float64, and bit for bit against itself in other passes."""

import torch

from dspark.kvcache.page_pool import PagedPool
from dspark_kernels.paged_attention import paged_attention
from dspark_kernels.paged_cache import PagedRows, gather_request
from gpu_parts.setting import Record, Setting, near, random_pool, row_counts, rows_at, verdict
from gpu_parts.shapes import ModelShape


def check_attention(
    setting: Setting, shape: ModelShape, dtype: torch.dtype, context: int, causal: bool
) -> Record:
    most = row_counts(setting)[-1]
    num_requests = 2 if setting.is_tiny else 4
    length = context + most
    pool, slots = random_pool(1, shape, length, setting, dtype, num_slots=num_requests)
    starts = [context - 100 * r for r in range(num_requests)]
    sizes = [most - r for r in range(num_requests)]
    total = sum(sizes)
    query = torch.randn(total, shape.num_heads, shape.head_dim, device=setting.device).to(dtype)
    scale = shape.head_dim**-0.5

    def attend(which: list[int], begins: list[int], counts: list[int], x: torch.Tensor):
        rows = rows_at(pool, [slots[r] for r in which], begins, counts, causal=causal)
        return paged_attention(x, *pool.layer(0), pool.tables, rows, scale)

    every = list(range(num_requests))
    result = attend(every, starts, sizes, query)
    rows = rows_at(pool, slots, starts, sizes, causal=causal)
    expected = attention_in_float64(query, pool, rows, scale)
    mine, of_mine = query[:most], result[:most]
    bits = {"one_request_alone": torch.equal(attend([0], [context], [most], mine), of_mine)}
    if causal:
        bits["rows_1_to_16"] = all(
            torch.equal(attend([0], [context], [n], mine[:n]), of_mine[:n])
            for n in row_counts(setting)
        )
        bits["each_row_alone"] = all(
            torch.equal(attend([0], [context + i], [1], mine[i : i + 1]), of_mine[i : i + 1])
            for i in range(most)
        )
    return verdict({"out": near(result, expected)}, **bits)


def attention_in_float64(
    query: torch.Tensor, pool: PagedPool, rows: PagedRows, scale: float
) -> torch.Tensor:
    out = torch.empty(query.shape, dtype=torch.float64, device=query.device)
    row_starts = rows.row_starts.tolist()
    for request, slot in enumerate(rows.slots.tolist()):
        mine = slice(row_starts[request], row_starts[request + 1])
        size, start = mine.stop - mine.start, int(rows.starts[request])
        keys, values = (
            gather_request(cached, pool.tables[slot], start + size).double()
            for cached in pool.layer(0)
        )
        grouped = query[mine].double().unflatten(1, (keys.shape[0], -1))
        scores = torch.einsum("nkgd,kld->nkgl", grouped, keys) * scale
        if rows.causal:
            position = torch.arange(start + size, device=query.device)
            positions = torch.arange(start, start + size, device=query.device)
            hidden = position.view(1, 1, 1, -1) > positions.view(-1, 1, 1, 1)
            scores = scores.masked_fill(hidden, float("-inf"))
        attended = torch.einsum("nkgl,kld->nkgd", scores.softmax(-1), values)
        out[mine] = attended.flatten(1, 2)
    return out.flatten(1)
