"""RoPE, the write into the pool, and attention over it, for rows of several requests."""

import random

import pytest
import torch

from dspark_kernels import RotaryTable, apply_rope, rms_norm
from dspark_kernels.cpu.attend_round import attend_round, attend_round_reference
from dspark_kernels.cpu.rope_write import Heads, rope_write, rope_write_reference
from dspark_kernels.cpu.runtime import using
from dspark_kernels.cpu.step_words import Pages, Place, step_words
from dspark_kernels.paged_cache import PAGE
from tests.kernels.cpu.pages import COLUMNS, copied, new_pages, read, write

LAYERS, SLOTS, CAPACITY = 2, 5, COLUMNS * PAGE


def rotary(head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    inverse = 1e4 ** (-torch.arange(0, head_dim, 2) / head_dim)
    cos, sin = RotaryTable(inverse, 1.0, torch.float32).upto(CAPACITY - 1)
    return cos.contiguous(), sin.contiguous()


def heads_of(num_heads: int, num_kv_heads: int, head_dim: int, has_norms: bool) -> Heads:
    norms = (torch.randn(head_dim), torch.randn(head_dim), 1e-6) if has_norms else None
    return Heads(num_heads, num_kv_heads, head_dim, head_dim**-0.5, norms)


def new_cache(heads: Heads) -> Pages:
    return new_pages(LAYERS, SLOTS, heads.num_kv_heads, heads.head_dim)


def fill(cache: Pages, slot: int, end: int, heads: Heads) -> torch.Tensor:
    numbers = torch.randn(LAYERS, 2, heads.num_kv_heads, end, heads.head_dim)
    write(cache, slot, 0, numbers)
    return numbers


def place_of(*blocks: tuple[int, int, int]) -> Place:
    """(slot, start, rows) of each request, causal."""
    slots = torch.tensor([slot for slot, _, n in blocks for _ in range(n)])
    positions = torch.tensor([start + i for _, start, n in blocks for i in range(n)])
    return Place(positions, slots, positions + 1)


SHAPES = [
    (9, 3, 64, False),
    (4, 4, 32, True),
    (8, 1, 128, True),
    (2, 1, 96, False),
    (7, 1, 64, False),
    (18, 1, 32, False),
]


@pytest.mark.parametrize("sizes", SHAPES)
def test_rope_write_is_what_its_parts_are(sizes):
    heads = heads_of(*sizes)
    place, cache = place_of((1, 0, 3), (4, PAGE - 1, 2)), new_cache(heads)
    qkv = torch.randn(5, (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim)
    table = rotary(heads.head_dim)
    query = rope_write_reference(qkv, cache, 1, place, table, heads)
    split = [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads]
    q, k, v = qkv.unflatten(1, (-1, heads.head_dim)).split(split, dim=1)
    if heads.norms is not None:
        q, k = rms_norm(q, heads.norms[0], 1e-6), rms_norm(k, heads.norms[1], 1e-6)
    cos, sin = (t[place.positions].unsqueeze(1) for t in table)
    torch.testing.assert_close(query, apply_rope(q, cos, sin) * heads.scale)
    keys, values = read(cache, 1)[1, 0, :, :3], read(cache, 4)[1, 1, :, PAGE - 1 : PAGE + 1]
    torch.testing.assert_close(keys, apply_rope(k, cos, sin)[:3].transpose(0, 1))
    assert torch.equal(values, v[3:].transpose(0, 1))
    assert cache.cached.isfinite().sum() == 2 * 5 * heads.num_kv_heads * heads.head_dim


@pytest.mark.parametrize("sizes", SHAPES)
def test_attention_is_a_softmax_over_what_is_visible(sizes):
    heads = heads_of(*sizes)
    cache = new_cache(heads)
    written = fill(cache, 2, PAGE + 40, heads)[0]
    query = torch.randn(3, heads.num_heads, heads.head_dim)
    seen = torch.tensor([1, 16, PAGE + 40])
    place = Place(seen - 1, torch.tensor([2, 2, 2]), seen)
    rounded = attend_round_reference(query, cache, 0, place, rotary(heads.head_dim), heads)
    group = heads.num_heads // heads.num_kv_heads
    for row, visible in enumerate(place.visible):
        keys, values = written[:, :, :visible].double().repeat_interleave(group, dim=1)
        weights = (keys @ query[row].double().unsqueeze(-1)).softmax(1)
        exact = (weights * values).sum(1).flatten()
        error = (rounded.values()[row].double() - exact).abs().unflatten(0, (-1, 32)).amax(-1)
        assert (error <= rounded.scales()[row].double() * 1.1).all()


@pytest.mark.parametrize("sizes", SHAPES)
def test_every_variant_attends_alike_and_in_any_company(sizes, runtimes):
    heads, table = heads_of(*sizes), rotary(sizes[2])
    blocks = [(0, 0, 1), (1, 7, 4), (3, PAGE - 2, 5), (2, 63, 2)]
    width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    start = new_cache(heads)
    for slot, before, _ in blocks:
        if before:
            fill(start, slot, before, heads)
    inputs = {slot: torch.randn(n, width) for slot, _, n in blocks}

    def run(chosen: list[tuple[int, int, int]], rope, attend):
        """Of each slot: queries, rounded rows, keys and values."""
        place, cache = place_of(*chosen), copied(start)
        query = rope(
            torch.cat([inputs[slot] for slot, _, _ in chosen]), cache, 1, place, table, heads
        )
        values = attend(query, cache, 1, place, table, heads).values()
        sizes = [n for _, _, n in chosen]
        parts = zip(chosen, query.split(sizes), values.split(sizes), strict=True)
        return {slot: (q, v, read(cache, slot)) for (slot, _, _), q, v in parts}

    expected = run(blocks, rope_write_reference, attend_round_reference)
    draw = random.Random(1)
    for runtime in runtimes:
        for count in (1, 2, 3, 4):
            with using(runtime):
                found = run(draw.sample(blocks, count), rope_write, attend_round)
            for slot, results in found.items():
                for result, right in zip(results, expected[slot], strict=True):
                    assert torch.equal(result.nan_to_num(7.0), right.nan_to_num(7.0))


@pytest.mark.parametrize("sizes", SHAPES)
def test_a_chunk_of_a_prompt_shares_its_keys(sizes, runtimes):
    """64 rows of one slot between two of others; a row does not notice what it must not see."""
    heads, table = heads_of(*sizes), rotary(sizes[2])
    place, cache = place_of((4, 20, 1), (2, 3, 64), (0, 5, 1)), new_cache(heads)
    for slot, seen in ((4, 21), (2, 67), (0, 6)):
        fill(cache, slot, seen, heads)
    queries = torch.randn(66, heads.num_heads, heads.head_dim)
    expected = attend_round_reference(queries, cache, 0, place, table, heads)
    damaged = copied(cache)
    numbers = torch.full((LAYERS, 2, heads.num_kv_heads, 1, heads.head_dim), float("nan"))
    write(damaged, 2, 40, numbers)  # seen by the rows from position 40 on
    for runtime in runtimes:
        with using(runtime):
            result = attend_round(queries, cache, 0, place, table, heads)
            other = attend_round(queries, damaged, 0, place, table, heads)
        assert torch.equal(result.data, expected.data), runtime.variant.name
        assert torch.equal(other.values()[:38], expected.values()[:38])
        assert other.values()[38:65].isnan().all()
        assert torch.equal(other.values()[65], expected.values()[65])


def test_rows_of_a_draft_block_see_each_other(runtimes):
    heads, table = heads_of(2, 1, 32, False), rotary(32)
    cache = new_cache(heads)
    fill(cache, 0, PAGE + 2, heads)
    places = torch.arange(PAGE - 2, PAGE + 2)
    place = Place(places, torch.zeros(4, dtype=torch.int64), torch.full((4,), PAGE + 2))
    query = torch.randn(4, 2, 32)
    expected = attend_round_reference(query, cache, 0, place, table, heads)
    alone = attend_round_reference(
        query[:1], cache, 0, Place(*(t[:1] for t in place)), table, heads
    )
    assert torch.equal(expected.values()[:1], alone.values())
    for runtime in runtimes:
        with using(runtime):
            result = attend_round(query, cache, 0, place, table, heads)
        assert torch.equal(result.data, expected.data)


@pytest.mark.parametrize(
    "wrong", [(5, 0, 1), (-1, 0, 1), (0, -1, 1), (0, CAPACITY, 1), (0, CAPACITY - 2, 4)]
)
def test_a_row_without_a_place_is_refused(wrong):
    heads = heads_of(2, 1, 32, False)
    with pytest.raises(ValueError, match=r"positions|slots|visible keys"):
        step_words(place_of(wrong), rotary(32), new_cache(heads))


def test_a_row_that_sees_nothing_is_refused():
    heads, zero = heads_of(2, 1, 32, False), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"positions|slots|visible keys"):
        step_words(Place(zero, zero, zero), rotary(32), new_cache(heads))


@pytest.mark.parametrize("shape", [(1, 2, 1, 1, PAGE, 40), (1, 2, 1, 1, 80, 64)])
def test_sizes_that_do_not_fit_are_refused(shape):
    cache = Pages(torch.zeros(shape), torch.zeros(1, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match="multiples"):
        step_words(place_of((0, 0, 1)), rotary(64), cache)


@pytest.mark.parametrize("page", [-1, 1])
def test_a_page_that_is_not_there_is_refused(page):
    cache = Pages(torch.zeros(1, 2, 1, 1, PAGE, 32), torch.tensor([[page]], dtype=torch.int32))
    with pytest.raises(ValueError, match="pages"):
        step_words(place_of((0, 0, 1)), rotary(32), cache)
