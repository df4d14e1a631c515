"""The paged pool, what is written into it and the attention over it, against plain forms."""

import pytest
import torch

from dspark.kvcache.page_pool import PagedPool, page_rows
from dspark.kvcache.row_pool import KVSlot, RowPlan
from dspark_kernels import last_arriver
from dspark_kernels.kv_codes import LARGEST, CodedRows, CodeKind, coded
from dspark_kernels.norm_rope_write import HeadNorms, norm_rope_write, norm_rope_write_reference
from dspark_kernels.paged_attention import (
    num_splits_for,
    paged_attention,
    paged_attention_reference,
)
from dspark_kernels.paged_cache import PAGE, PagedRows, gather_request
from dspark_kernels.rope import RotaryTable
from tests.kernels.closeness import assert_near

DTYPES = [torch.float32, torch.bfloat16]


def filled(
    lengths: list[int],
    num_kv_heads: int,
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype,
    codes: CodeKind | None = None,
) -> tuple[PagedPool, list[KVSlot]]:
    """A pool whose requests took their pages in turns; everything beyond their lengths is NaN."""
    pool = PagedPool(1, num_kv_heads, head_dim, device, dtype, codes=codes)
    slots = [pool.open() for _ in lengths]
    for length in range(PAGE, max(lengths) + 2 * PAGE, PAGE):
        for slot, own in zip(slots, lengths, strict=True):
            pool.reserve(slot.index, min(length, own + 64))
    for slot, length in zip(slots, lengths, strict=True):
        slot.length = length
        for cached in pool.layer(0):
            for page in range(0, length, PAGE):
                rows = min(PAGE, length - page)
                at = pool.tables[slot.index, page // PAGE]
                fresh = torch.randn(num_kv_heads, rows, head_dim)
                if isinstance(cached, CodedRows):
                    for part, new in zip(cached, coded(fresh, cached.codes.dtype), strict=True):
                        part[at, :, :rows] = new.to(part)
                else:
                    cached[at, :, :rows] = fresh.to(cached)
    return pool, slots


def rows_of(
    pool: PagedPool, slots: list[KVSlot], sizes: list[int], *, causal: bool = True
) -> PagedRows:
    return page_rows(RowPlan(slots, sizes, causal=causal), pool.tables.device)


def attend(pool, slots, sizes, qkv, *, causal=True, reference=False, **options):
    """qkv [N, heads + 2 kv_heads, D] written, then attended to; -> [N, heads * D]."""
    rows, cached = rows_of(pool, slots, sizes, causal=causal), pool.layer(0)
    query = norm_rope_write(qkv, *cached, pool.tables, rows, None, None)
    function = paged_attention_reference if reference else paged_attention
    return function(query, *cached, pool.tables, rows, qkv.shape[-1] ** -0.5, **options)


def test_requests_take_pages_as_they_grow_and_give_them_back(device):
    pool, slots = filled([300, 10, 600], 1, 8, device, torch.float32)
    own = [gather_request(pool.layer(0)[0], pool.tables[s.index], s.length) for s in slots]
    assert not any(keys.isnan().any() for keys in own)
    used = [pool.tables[s.index, : -(-s.length // PAGE)].tolist() for s in slots]
    assert len({page for pages in used for page in pages}) == 2 + 1 + 3
    free, pages_of_last = pool.num_free_pages, 3
    del slots[2]
    assert pool.num_free_pages == free + pages_of_last
    for slot, keys in zip(slots, own, strict=False):
        assert torch.equal(
            gather_request(pool.layer(0)[0], pool.tables[slot.index], slot.length), keys
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_heads", "has_rope", "has_norm"),
    [(4, True, True), (4, True, False), (0, True, True), (2, False, False)],
)
def test_norm_rope_write(device, dtype, num_heads, has_rope, has_norm):
    lengths, sizes, head_dim = [254, 0], [3, 5], 24
    qkv = torch.randn(8, num_heads + 4, head_dim, device=device).to(dtype)
    inv_freq = 1e4 ** (-torch.arange(0, head_dim, 2, device=device) / head_dim)
    rotary = RotaryTable(inv_freq, 1.0, dtype).upto(260) if has_rope else None
    weights = torch.randn(2, head_dim, device=device).to(dtype)
    norms = HeadNorms(weights[0], weights[1], 1e-6) if has_norm else None
    results = []
    for function in (norm_rope_write, norm_rope_write_reference):
        torch.manual_seed(1)
        pool, slots = filled(lengths, 2, head_dim, device, dtype)
        rows, cached = rows_of(pool, slots, sizes), pool.layer(0)
        query = function(qkv, *cached, pool.tables, rows, rotary, norms)
        results.append((query, *cached, pool, slots))
    query, keys, values, pool, slots = results[0]
    expected_query, expected_keys, expected_values, *_ = results[1]
    if num_heads:
        assert_near(query, expected_query)
    assert query.shape == (8, num_heads, head_dim)
    assert torch.equal(keys.isnan(), expected_keys.isnan())
    assert torch.equal(values.nan_to_num(), expected_values.nan_to_num())
    assert_near(keys.nan_to_num(), expected_keys.nan_to_num())
    for slot, size in zip(slots, sizes, strict=True):
        kept = gather_request(keys, pool.tables[slot.index], slot.length + size)
        assert not kept.isnan().any()


OPTIONS = {
    "causal": {},
    "block": {"causal": False},
    "window": {"window": 70},
    "block in a window": {"causal": False, "window": 300},
    "soft cap": {"soft_cap": 2.0},
}


@pytest.mark.parametrize("codes", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_and_values_become_the_nearest_codes(device, dtype, codes):
    """Half a step off at most: of int8 everywhere the same, of e4m3 a sixteenth of the number."""
    lengths, sizes, head_dim = [254, 0], [3, 5], 24
    qkv = torch.randn(8, 2 + 4, head_dim, device=device).to(dtype)
    qkv[2, 2:] *= 1000
    qkv[3, 3] = 0
    read = []
    for kind in (codes, None):
        pool, slots = filled(lengths, 2, head_dim, device, dtype, kind)
        rows, cached = rows_of(pool, slots, sizes), pool.layer(0)
        query = norm_rope_write(qkv, *cached, pool.tables, rows, None, None)
        assert torch.equal(query, qkv[:, :2])
        read += [
            gather_request(each, pool.tables[slot.index], slot.length + size)[:, slot.length :]
            for each in cached
            for slot, size in zip(slots, sizes, strict=True)
        ]
    for ours, exact in zip(read[:4], [each.float() for each in read[4:]], strict=True):
        scale = exact.abs().amax(-1, keepdim=True) / LARGEST[codes]
        step = scale if codes == "int8" else torch.maximum(exact.abs() / 8, scale * 2**-9)
        assert ((ours - exact).abs() <= step / 2 * 1.0001 + exact.abs() * 1e-6).all()


@pytest.mark.parametrize("codes", ["int8", "fp8"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_number_breaks_its_row(device, codes, number):
    """So that no token is made of it: logits with NaN end a request."""
    pool, slots = filled([3], 1, 8, device, torch.float32, codes)
    qkv = torch.randn(2, 3, 8, device=device)
    qkv[0, 1, 5] = number
    attended = attend(pool, slots, [2], qkv)
    assert attended.isnan().all()
    keys = gather_request(pool.layer(0)[0], pool.tables[slots[0].index], 5)
    assert keys[0, 3].isnan().all() and not keys[0, 4].isnan().any()


CODED = [(name, codes) for codes in ("int8", "fp8") for name in ("causal", "window")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "codes"), [*((name, None) for name in OPTIONS), *CODED])
def test_paged_attention(device, dtype, name, codes):
    options = OPTIONS[name]
    lengths, sizes = [63, 301, 0], [5, 3, 1]
    pool, slots = filled(lengths, 2, 16, device, dtype, codes)
    qkv = torch.randn(sum(sizes), 4 + 4, 16, device=device).to(dtype)
    sinks = torch.randn(4, device=device).to(dtype) if options else None
    expected = attend(pool, slots, sizes, qkv, reference=True, sinks=sinks, **options)
    assert_near(attend(pool, slots, sizes, qkv, sinks=sinks, **options), expected)


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"), [(3, 3, 8), (8, 1, 24), (5, 1, 64), (16, 1, 128)]
)
def test_shapes_of_heads(device, num_heads, num_kv_heads, head_dim):
    pool, slots = filled([100], num_kv_heads, head_dim, device, torch.float32)
    qkv = torch.randn(11, num_heads + 2 * num_kv_heads, head_dim, device=device)
    expected = attend(pool, slots, [11], qkv, reference=True)
    assert_near(attend(pool, slots, [11], qkv), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("options", "codes"),
    [({}, None), ({"window": 70, "soft_cap": 2.0}, None), ({}, "int8"), ({}, "fp8")],
    ids=["all", "window", "int8", "fp8"],
)
def test_a_row_knows_nothing_of_its_company(device, dtype, options, codes):
    """Alone, in a block of any size, beside shorter and longer requests: the same bits."""
    pool, slots = filled([251, 300], 1, 16, device, dtype, codes)
    blocks = [torch.randn(9, 5, 16, device=device).to(dtype) for _ in slots]
    company = attend(pool, slots, [9, 9], torch.cat(blocks), **options).split(9)
    turned = attend(pool, slots[::-1], [9, 9], torch.cat(blocks[::-1]), **options).split(9)
    for slot, block, expected, other in zip(slots, blocks, company, turned[::-1], strict=True):
        assert torch.equal(other, expected)
        assert torch.equal(attend(pool, [slot], [5], block[:5], **options), expected[:5])
        for row in (0, 4, 5, 8):  # both sides of a page's end
            slot.length += row
            alone = attend(pool, [slot], [1], block[row : row + 1], **options)
            assert torch.equal(alone, expected[row : row + 1])
            slot.length -= row


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_knows_nothing_of_other_requests(device, dtype):
    pool, slots = filled([250, 40, 300], 1, 16, device, dtype)
    qkv = torch.randn(21, 5, 16, device=device).to(dtype)
    company = attend(pool, slots, [7] * 3, qkv, causal=False).split(7)
    for slot, block, expected in zip(slots, qkv.split(7), company, strict=True):
        assert torch.equal(attend(pool, [slot], [7], block, causal=False), expected)


def attend_two(device, dtype, **options):
    """Two requests, one of more splits than are added up at once."""
    torch.manual_seed(5)
    pool, slots = filled([1500, 70], 1, 8, device, dtype)
    qkv = torch.randn(6, 4, 8, device=device).to(dtype)
    arguments = (pool, slots, [4, 2], qkv)
    return attend(*arguments, **options), attend(*arguments, reference=True, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"window": 600}], ids=["all", "window"])
def test_more_splits_than_are_added_up_at_once(device, dtype, options):
    assert_near(*attend_two(device, dtype, **options))


def test_sums_of_splits_have_no_order_but_their_own(device, monkeypatch, backwards):
    """Whoever comes last; and pages are counted as they should be for any of these numbers."""
    first, _ = attend_two(device, torch.bfloat16)
    with monkeypatch.context() as patched:
        patched.setattr("dspark_kernels.paged_attention.SPLITS_AT_ONCE", 2)
        assert_near(*attend_two(device, torch.float32))
    backwards()
    assert torch.equal(attend_two(device, torch.bfloat16)[0], first)
    assert not any(counters.any() for counters in last_arriver._COUNTERS.values())


def test_splits_cover_every_position_once():
    for num_pages in range(1, 9):
        splits = [split_of_position(at) for at in range(num_pages * PAGE)]
        assert sorted({*splits}) == list(range(num_splits_for(num_pages)))
        assert splits == sorted(splits)


def split_of_position(position: int) -> int:
    """As paged_attention_splits.py states it."""
    return position // 64 if position < 1024 else 16 + (position - 1024) // PAGE


@pytest.mark.parametrize("options", [{}, {"window": 70}], ids=["all", "window"])
def test_a_row_has_the_same_bits_on_both_sides_of_the_short_splits_end(device, options):
    pool, slots = filled([1019], 1, 8, device, torch.bfloat16)
    (slot,) = slots
    block = torch.randn(9, 4, 8, device=device).bfloat16()
    expected = attend(pool, [slot], [9], block, **options)
    for row in (0, 4, 5, 8):
        slot.length += row
        alone = attend(pool, [slot], [1], block[row : row + 1], **options)
        assert torch.equal(alone, expected[row : row + 1])
        slot.length -= row
