"""Every operation against its plain meaning, on odd shapes."""

import weakref

import pytest
import torch
import torch.nn.functional as F

from dspark.kvcache.pooled_attention import PooledAttention
from dspark.kvcache.row_pool import KVPool, RowPlan
from dspark_kernels import (
    RotaryTable,
    SkinnyLinear,
    accept_greedy,
    apply_rope,
    draw,
    rms_norm,
    swiglu,
)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 15, 16, 17, 64])
@pytest.mark.parametrize("sizes", [(576, 960), (48, 65), (1, 3)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_skinny_linear_is_a_linear(num_rows, sizes, has_bias):
    width, out = sizes
    weight, x = torch.randn(out, width), torch.randn(num_rows, width)
    bias = torch.randn(out) if has_bias else None
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    for pack in (True, False):
        result = SkinnyLinear(weight, bias, pack=pack)(x)
        torch.testing.assert_close(result.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("width", [33, 576, 1536, 4096])
def test_rows_of_a_packed_linear_do_not_depend_on_their_number(width):
    linear = SkinnyLinear(torch.randn(960, width), torch.randn(960))
    if linear._packed is None:
        pytest.skip("this build of torch packs no weights")
    x = torch.randn(64, width)
    whole = linear(x)
    for num_rows in range(1, 64):
        assert torch.equal(linear(x[:num_rows].contiguous()), whole[:num_rows])


@pytest.mark.parametrize("num_rows", [65, 100, 257])
@pytest.mark.parametrize("width", [48, 2048])
def test_the_rows_of_a_prompt_are_those_of_a_linear(num_rows, width):
    weight, x = torch.randn(96, width), torch.randn(num_rows, width)
    expected = F.linear(x.double(), weight.double())
    result = SkinnyLinear(weight)(x)
    torch.testing.assert_close(result.double(), expected, atol=1e-3, rtol=1e-5)


def test_a_packed_weight_is_held_once():
    weight = torch.randn(64, 48)
    gone, shared = weakref.ref(weight), SkinnyLinear(weight, is_shared=True)
    linear = SkinnyLinear(weight)
    if linear._packed is None:
        pytest.skip("this build of torch packs no weights")
    assert shared.weight is weight
    x = torch.randn(3, 48)
    expected = F.linear(x, weight)
    del weight, shared
    assert gone() is None
    torch.testing.assert_close(linear(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(dtype):
    x, weight = torch.randn(5, 33).to(dtype), torch.randn(33).to(dtype)
    x64 = x.double()
    expected = x64 / (x64.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    close = 1e-5 if dtype == torch.float32 else 2e-2
    result = rms_norm(x, weight, 1e-5)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, atol=close, rtol=close)


def test_swiglu():
    gate, up = torch.randn(3, 7), torch.randn(3, 7)
    expected = gate * torch.sigmoid(gate) * up
    torch.testing.assert_close(swiglu(torch.cat([gate, up], -1)), expected)


def test_rope_depends_on_distance_only_and_grows():
    table = RotaryTable(1e4 ** (-torch.arange(0, 16, 2) / 16), 1.0, torch.float32)
    query, key = torch.randn(1, 1, 16), torch.randn(1, 1, 16)

    def score(position, distance):
        at = [table.at(torch.tensor([p]), p) for p in (position + distance, position)]
        return (apply_rope(query, *at[0]) * apply_rope(key, *at[1])).sum()

    for distance in (0, 1, 30):
        torch.testing.assert_close(score(0, distance), score(3000, distance), atol=1e-3, rtol=1e-3)


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


def test_greedy_acceptance():
    logits = F.one_hot(torch.tensor([4, 2, 7, 1]), 9).float()
    assert accept_greedy(torch.tensor([4, 2, 7]), logits) == (3, 1)
    assert accept_greedy(torch.tensor([4, 3, 7]), logits) == (1, 2)
    assert accept_greedy(torch.tensor([], dtype=torch.long), logits[:1]) == (0, 4)


def test_a_draw_never_has_probability_zero():
    generator = torch.Generator().manual_seed(0)
    probs = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    drawn = [draw(probs, generator) for _ in range(2000)]
    assert set(drawn) == {1, 3}
    # three standard deviations of 2,000 draws
    assert abs(drawn.count(3) / 2000 - 0.75) < 0.03
