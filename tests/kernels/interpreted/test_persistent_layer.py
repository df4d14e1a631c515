"""A layer in one launch against the chain of kernels, bit for bit.

In the interpreter a launch is one for each phase: meetings of programs are for a card.
"""

from dataclasses import replace

import pytest
import torch

from dspark.kvcache.page_pool import PagedPool, page_rows
from dspark.kvcache.row_pool import RowPlan
from dspark_kernels import HeadNorms, ResidualStream, SkinnyLinear, last_arriver
from dspark_kernels.norm_rope_write import norm_rope_write
from dspark_kernels.paged_attention import paged_attention
from dspark_kernels.persistent_layer import persistent_layer
from dspark_kernels.persistent_layer_call import CachedLayer, LayerWeights
from dspark_kernels.quantized_weight import quantize_int4
from dspark_kernels.rope import RotaryTable

EPS, HEAD_DIM, NUM_KV_HEADS, GROUP = 1e-6, 32, 2, 2
ALL_HEADS = NUM_KV_HEADS * (GROUP + 2)


def random_layer(device, dtype, hidden, inner, quantize=lambda w: w, has_norms=True):
    def weight(outputs, columns):
        return quantize((torch.randn(outputs, columns, device=device) * columns**-0.5).to(dtype))

    def norm(width):
        return (1 + 0.1 * torch.randn(width, device=device)).to(dtype)

    heads = NUM_KV_HEADS * GROUP * HEAD_DIM
    norms = HeadNorms(norm(HEAD_DIM), norm(HEAD_DIM), EPS) if has_norms else None
    return LayerWeights(
        norm(hidden), weight(ALL_HEADS * HEAD_DIM, hidden), norms, weight(hidden, heads),
        norm(hidden), weight(2 * inner, hidden), weight(hidden, inner),
    )  # fmt: skip


class Requests:
    """Of these lengths, each with `sizes` new rows; keys and values that are there are random."""

    def __init__(self, device, dtype, lengths, sizes, *, codes=None, causal=True):
        pages = sum(-(-(length + 16) // 256) for length in lengths)
        sized = {"num_pages": pages, "num_slots": len(lengths), "max_length": max(lengths) + 16}
        self.pool = PagedPool(1, NUM_KV_HEADS, HEAD_DIM, device, dtype, codes=codes, **sized)
        slots = [self.pool.open() for _ in lengths]
        for slot, length in zip(slots, lengths, strict=True):
            self.pool.reserve(slot.index, length + 16)
            slot.length = length
        self.rotary = RotaryTable(1e4 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM), 1.0, dtype)
        self.rotary = tuple(table.to(device) for table in self.rotary.upto(max(lengths) + 16))
        for cached in self.pool.layer(0):
            for part in (cached,) if isinstance(cached, torch.Tensor) else cached:
                if part.is_floating_point():
                    part.uniform_(0.5, 1.0)
                else:
                    part.random_(-100, 100)
        self.rows = page_rows(RowPlan(slots, sizes, causal=causal), device)

    def cached(self):
        keys, values = self.pool.layer(0)
        return CachedLayer(keys, values, self.pool.tables, self.rows, self.rotary, 0.25)

    def written(self):
        layer = self.pool.layer(0)
        parts = [(each,) if isinstance(each, torch.Tensor) else tuple(each) for each in layer]
        return [part.clone() for pair in parts for part in pair]


def chain(x, weights, cached, tap):
    """As dspark.models.decoder launches a layer."""
    linear = {n: SkinnyLinear(getattr(weights, n), prepack=False)
              for n in ("qkv", "output", "gate_up", "down")}  # fmt: skip
    keys, values, tables, rows, rotary, scale = cached
    normed, total = ResidualStream(x).normed(weights.input_norm, EPS, tap)
    heads = linear["qkv"](normed).view(len(x), ALL_HEADS, HEAD_DIM)
    query = norm_rope_write(heads, keys, values, tables, rows, rotary, weights.head_norms)
    total = linear["output"].onto(total, paged_attention(query, keys, values, tables, rows, scale))
    normed, total = total.normed(weights.mlp_norm, EPS)
    return linear["down"].onto(total, linear["gate_up"].gated(normed))


@pytest.mark.parametrize(
    ("dtype", "hidden", "inner", "quantize", "codes"),
    [
        (torch.float32, 256, 330, lambda w: w, None),  # of two splits, and of half a step
        (torch.bfloat16, 128, 256, lambda w: w, None),
        (torch.bfloat16, 1024, 128, lambda w: w, "int8"),
        (torch.bfloat16, 128, 128, quantize_int4, None),
    ],
    ids=["float32", "bf16", "split bf16, coded cache", "int4"],
)
def test_the_bits_of_the_chain(device, dtype, hidden, inner, quantize, codes):
    if quantize is quantize_int4:
        quantize = lambda w: quantize_int4(w, 32)  # noqa: E731
    weights = random_layer(device, dtype, hidden, inner, quantize)
    requests = Requests(device, dtype, [250, 3], [5, 1], codes=codes)
    x = torch.randn(6, hidden, device=device).to(dtype)
    before = requests.written()
    found_tap, wanted_tap = torch.zeros(2, 6, 2 * hidden, device=device, dtype=dtype)
    wanted = chain(x, weights, requests.cached(), wanted_tap[:, hidden:])
    wanted_rows = requests.written()
    assert not all(torch.equal(a, b) for a, b in zip(wanted_rows, before, strict=True))
    for part, old in zip(parts_of(requests), before, strict=True):
        part.copy_(old)
    found = persistent_layer(
        ResidualStream(x), weights, requests.cached(), EPS, found_tap[:, hidden:]
    )
    assert torch.equal(found.total, wanted.total)
    assert torch.equal(found_tap, wanted_tap)
    assert all(torch.equal(a, b) for a, b in zip(requests.written(), wanted_rows, strict=True))


def parts_of(requests):
    layer = requests.pool.layer(0)
    return [part for each in layer
            for part in ((each,) if isinstance(each, torch.Tensor) else each)]  # fmt: skip


def test_a_row_knows_nothing_of_its_company_or_of_the_order_of_programs(device, backwards):
    weights = random_layer(device, torch.bfloat16, 128, 128, has_norms=False)
    x = torch.randn(8, 128, device=device).bfloat16()
    torch.manual_seed(1)
    requests = Requests(device, torch.bfloat16, [300, 60], [4, 4])
    together = persistent_layer(ResidualStream(x), weights, requests.cached(), EPS).total
    rows = requests.rows
    alone = replace(
        rows, slots=rows.slots[1:], starts=rows.starts[1:], max_rows=1,
        row_starts=torch.tensor([0, 1], dtype=torch.int32, device=device),
    )  # fmt: skip
    single = requests.cached()._replace(rows=alone)
    found = persistent_layer(ResidualStream(x[4:5]), weights, single, EPS).total
    assert torch.equal(found, together[4:5])
    backwards()
    again = persistent_layer(ResidualStream(x), weights, requests.cached(), EPS).total
    assert torch.equal(again, together)
    assert not any(counters.any() for counters in last_arriver._COUNTERS.values())


def test_what_it_does_not_take(device):
    weights = random_layer(device, torch.bfloat16, 128, 128)
    requests = Requests(device, torch.bfloat16, [20], [1])
    many = torch.randn(17, 128, device=device).bfloat16()
    mixed = weights._replace(down=quantize_int4(weights.down, 32))
    for x, given in ((many, weights), (many[:1], mixed)):
        assert persistent_layer(ResidualStream(x), given, requests.cached(), EPS) is None
    update = ResidualStream(many[:1], many[:1])
    assert persistent_layer(update, weights, requests.cached(), EPS) is None
