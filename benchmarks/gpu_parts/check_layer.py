"""The kernels of a layer against float64: products, norms, RoPE and cache write, SwiGLU."""

import torch
import torch.nn.functional as F

from dspark_kernels import EmbeddedBlocks, QuantizedWeight, rms_norm, skinny_linear, swiglu
from dspark_kernels.norm import add_rms_norm
from dspark_kernels.norm_rope_write import HeadNorms, norm_rope_write
from dspark_kernels.paged_cache import gather_request
from gpu_parts.setting import (
    Record,
    Setting,
    Weight,
    near,
    random_pool,
    random_weight,
    relative_error,
    rotary_tables,
    row_counts,
    rows_at,
    verdict,
)
from gpu_parts.shapes import EPS, ModelShape

CHUNK = 16384  # rows of a weight in float64 at a time


def check_skinny(
    setting: Setting, kind: str, size: tuple[int, int], dtype: torch.dtype, is_gated: bool
) -> Record:
    weight = random_weight(kind, size, setting.device, dtype)
    counts = row_counts(setting)
    most = counts[-1]
    x = torch.randn(4 * most, size[1], device=setting.device).to(dtype)
    result = skinny_linear(x[:most], weight, gated=is_gated)
    expected = in_float64(x[:most], weight)
    if is_gated:
        gate, up = expected.chunk(2, dim=-1)
        expected = F.silu(gate) * up
    same = all(
        torch.equal(skinny_linear(x[:n], weight, gated=is_gated), result[:n]) for n in counts
    )
    alone = all(
        torch.equal(skinny_linear(x[i : i + 1], weight, gated=is_gated), result[i : i + 1])
        for i in range(most)
    )
    more = torch.equal(skinny_linear(x, weight, gated=is_gated)[:most], result)
    return verdict(
        {"out": near(result, expected)},
        rows_1_to_16=same,
        each_row_alone=alone,
        among_64_rows=more,
    )


def in_float64(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    outputs = []
    for begin in range(0, weight.shape[0], CHUNK):
        end = min(begin + CHUNK, weight.shape[0])
        if isinstance(weight, QuantizedWeight):
            values = weight.rows(begin, end).dequantized(torch.float64)
        else:
            values = weight[begin:end].double()
        outputs.append(x.double() @ values.t())
    return torch.cat(outputs, dim=1)


def check_norm(setting: Setting, shape: ModelShape, dtype: torch.dtype) -> Record:
    rows = row_counts(setting)[-1]
    x, residual = torch.randn(2, rows, shape.hidden_size, device=setting.device).to(dtype)
    weight = (1 + 0.1 * torch.randn(shape.hidden_size, device=setting.device)).to(dtype)
    alone = rms_norm(x, weight, EPS)
    out, total = add_rms_norm(x, residual, weight, EPS)
    single = torch.cat([add_rms_norm(x[i : i + 1], residual[i : i + 1], weight, EPS)[0]
                        for i in range(rows)])  # fmt: skip
    return verdict(
        {
            "norm": near(alone, norm_in_float64(x, weight)),
            "sum": near(total, x.double() + residual.double()),
            # of the sum as it was rounded, which is what later layers see
            "norm of the sum": near(out, norm_in_float64(total, weight)),
        },
        each_row_alone=torch.equal(single, out),
    )


def check_embedded_blocks(setting: Setting, shape: ModelShape, dtype: torch.dtype) -> Record:
    """Three blocks whose tokens behind the first are a part of wider rows."""
    table = torch.randn(shape.vocab_size, shape.hidden_size, device=setting.device).to(dtype)
    weight = (1 + 0.1 * torch.randn(shape.hidden_size, device=setting.device)).to(dtype)
    ids = torch.randint(shape.vocab_size, (3, 8), device=setting.device)
    taps = torch.zeros(15, 2, shape.hidden_size, device=setting.device, dtype=dtype)
    blocks = EmbeddedBlocks(table, ids[:, 0], ids[:, 1:5])
    out, stream = blocks.normed(weight, EPS, taps[:, 1])
    rows = table[ids[:, :5].flatten()]
    return verdict(
        {"norm": near(out, norm_in_float64(rows, weight))},
        rows=torch.equal(stream.total, rows),
        tap=torch.equal(taps[:, 1], rows),
        other_tap_untouched=not taps[:, 0].any(),
        as_the_norm_alone=torch.equal(out, rms_norm(rows, weight, EPS)),
    )


def norm_in_float64(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


def check_swiglu(setting: Setting, shape: ModelShape, dtype: torch.dtype) -> Record:
    rows = row_counts(setting)[-1]
    x = torch.randn(rows, 2 * shape.intermediate_size, device=setting.device).to(dtype)
    out = swiglu(x)
    gate, up = x.double().chunk(2, dim=-1)
    single = torch.cat([swiglu(x[i : i + 1]) for i in range(rows)])
    return verdict({"out": near(out, F.silu(gate) * up)}, each_row_alone=torch.equal(single, out))


def check_norm_rope_write(setting: Setting, shape: ModelShape, dtype: torch.dtype) -> Record:
    """Two requests, one across the end of a page."""
    starts, sizes = [250, 3], [9, 5]
    pool, slots = random_pool(1, shape, 300, setting, dtype, num_slots=2)
    rows = rows_at(pool, slots, starts, sizes, causal=True)
    heads = shape.num_heads + 2 * shape.num_kv_heads
    qkv = torch.randn(14, heads, shape.head_dim, device=setting.device).to(dtype)
    weights = (1 + 0.1 * torch.randn(2, shape.head_dim, device=setting.device)).to(dtype)
    norms = HeadNorms(weights[0], weights[1], EPS)
    rotary = rotary_tables(shape, 300, setting.device, dtype)
    before = [gather_request(c, pool.tables[s.index], 300).clone() for c in pool.layer(0)
              for s in slots]  # fmt: skip
    query = norm_rope_write(qkv, *pool.layer(0), pool.tables, rows, rotary, norms)
    after = [gather_request(c, pool.tables[s.index], 300) for c in pool.layer(0) for s in slots]
    spans = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    written, untouched = [], True
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        span = spans[index % 2]
        written.append(new[:, span].transpose(0, 1))
        kept = torch.ones(300, dtype=torch.bool, device=setting.device)
        kept[span] = False
        untouched &= torch.equal(old[:, kept], new[:, kept])
    wanted_query, wanted_key, value = qkv.double().split(
        [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], dim=1
    )
    cos, sin = (table.double()[rows.positions()].unsqueeze(1) for table in rotary)
    turned = [
        turn_in_float64(norm_in_float64(each, weight), cos, sin)
        for each, weight in ((wanted_query, weights[0]), (wanted_key, weights[1]))
    ]
    return verdict(
        {
            "query": near(query, turned[0]),
            "key": near(torch.cat(written[:2]), turned[1]),
            "value": (relative_error(torch.cat(written[2:]), value), 0.0),
        },
        other_positions_untouched=untouched,
    )


def turn_in_float64(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
