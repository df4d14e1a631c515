"""Rows of requests in one pool: attention over them, and rows given back."""

import pytest
import torch

from dspark.kvcache.pooled_attention import PooledAttention
from dspark.kvcache.row_pool import KVPool, RowPlan


def naive_attention(query, keys, values, visible):
    """query [heads, D], keys and values [L, kv_heads, D] of one row's request."""
    group = query.shape[0] // keys.shape[1]
    out = []
    for head in range(query.shape[0]):
        k, v = keys[:visible, head // group], values[:visible, head // group]
        out.append((k @ query[head] * 0.25).softmax(0) @ v)
    return torch.cat(out)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [([0], [5]), ([300], [1]), ([9], [6]), ([0, 17, 3], [4, 1, 6]), ([250, 2], [8, 8])],
)
def test_pooled_attention(causal, lengths, sizes):
    pool = KVPool(2, 2, 8, torch.device("cpu"), torch.float32)
    slots = [pool.open() for _ in lengths]
    history = []
    for slot, length in zip(slots, lengths, strict=True):
        keys, values = torch.randn(2, length, 2, 8), torch.randn(2, length, 2, 8)
        if length:
            attend = PooledAttention(pool, RowPlan([slot], [length], causal=True), 0.25)
            for layer in range(2):
                attend.write(layer, keys[layer], values[layer])
        slot.length = length
        history.append((keys, values))
    total = sum(sizes)
    query, key, value = torch.randn(total, 6, 8), torch.randn(total, 2, 8), torch.randn(total, 2, 8)
    for order in (slots, slots[::-1]):
        which = [slots.index(slot) for slot in order]
        own = [sizes[i] for i in which]
        attend = PooledAttention(pool, RowPlan(order, own, causal=causal), 0.25)
        result = attend(1, query, key, value)
        start = 0
        for i, size in zip(which, own, strict=True):
            rows = slice(start, start + size)
            keys = torch.cat([history[i][0][1], key[rows]])
            values = torch.cat([history[i][1][1], value[rows]])
            for row in range(size):
                visible = lengths[i] + (row + 1 if causal else size)
                expected = naive_attention(query[start + row], keys, values, visible)
                torch.testing.assert_close(result[start + row], expected, atol=1e-5, rtol=1e-4)
            start += size


@pytest.mark.parametrize("length", [1, 30, 170, 190, 250, 300, 395, 500, 690, 765, 1000])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(2, 64), (6, 64), (14, 128)])
def test_a_row_of_pooled_attention_is_the_same_to_the_bit_in_any_company(
    length, num_heads, head_dim
):
    if not torch.backends.mkl.is_available():
        pytest.skip("another library's matrix products")
    pool = KVPool(1, 2, head_dim, torch.device("cpu"), torch.float32)
    slots = [pool.open() for _ in range(2)]
    cached = torch.randn(2, length, 2, head_dim)
    for slot in slots:
        attend = PooledAttention(pool, RowPlan([slot], [length], causal=True), 0.1)
        attend.write(0, *cached)
        slot.length = length
    query = torch.randn(16, num_heads, head_dim)
    new = torch.randn(2, 16, 2, head_dim)

    def rows(first, last):
        slots[0].length = length + first
        attend = PooledAttention(pool, RowPlan(slots[:1], [last - first], causal=True), 0.1)
        return attend(0, query[first:last], *new[:, first:last])

    alone = torch.cat([rows(i, i + 1) for i in range(16)])
    for size in range(2, 17):
        assert torch.equal(rows(0, size), alone[:size]), size
    slots[0].length = length
    attend = PooledAttention(pool, RowPlan(slots, [5, 16], causal=True), 0.1)
    both = attend(0, torch.cat([query[:5], query]), *torch.cat([new[:, :5], new], dim=1))
    assert torch.equal(both, torch.cat([alone[:5], alone]))


def test_slots_are_given_back_and_reused():
    pool = KVPool(1, 1, 4, torch.device("cpu"), torch.float32)
    first = pool.open()
    index = first.index
    others = [pool.open() for _ in range(5)]
    assert len({index, *(slot.index for slot in others)}) == 6
    del first
    assert pool.open().index == index
