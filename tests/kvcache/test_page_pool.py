"""Pages of requests: shared, copied before they are written to, free once nobody holds them."""

import gc
import random

import pytest
import torch

from dspark.kvcache.page_pool import PagedPool
from dspark_kernels.paged_cache import PAGE, gather_request

CPU = torch.device("cpu")


def pool_of(num_pages=4, *, grows=True) -> PagedPool:
    sizes = {"num_pages": num_pages, "num_slots": 8, "max_length": 8 * PAGE}
    return PagedPool(2, 1, 4, CPU, torch.float32, grows=grows, **sizes)


def append(pool, slot, values) -> None:
    """As a pass does: room from the slot's length on, then every layer's keys and values."""
    end = slot.length + len(values)
    pool.reserve(slot.index, end, slot.length)
    for layer in range(2):
        for cached in pool.layer(layer):
            for position, value in zip(range(slot.length, end), values, strict=True):
                page = pool.tables[slot.index, position // PAGE]
                cached[page, :, position % PAGE] = value
    slot.length = end


def content(pool, slot) -> list[float]:
    read = [
        gather_request(cached, pool.tables[slot.index], slot.length)
        for layer in range(2)
        for cached in pool.layer(layer)
    ]
    assert all(torch.equal(cached, read[0]) for cached in read)
    assert (read[0] == read[0][..., :1]).all()
    return read[0][0, :, 0].tolist()


def test_a_shared_prefix_is_held_once_and_read_by_both():
    pool = pool_of()
    first = pool.open()
    text = list(range(2 * PAGE + 5))
    append(pool, first, text)
    free = pool.num_free_pages
    second = pool.fork(first, 2 * PAGE + 3)
    assert pool.num_free_pages == free
    assert second.length == 2 * PAGE + 3
    assert content(pool, second) == text[: 2 * PAGE + 3]
    append(pool, second, [-1.0, -2.0])
    assert content(pool, first) == text
    first.close()
    assert content(pool, second) == [*text[: 2 * PAGE + 3], -1, -2]
    second.close()
    pool.check()
    assert pool.num_free_pages == pool.num_pages


def test_what_is_shared_is_copied_before_it_is_written_to():
    pool = pool_of()
    first = pool.open()
    append(pool, first, list(range(2 * PAGE)))
    second = pool.fork(first, 2 * PAGE)
    second.length = PAGE + 3  # rolled back into a shared page
    append(pool, second, [-1.0])
    assert content(pool, first) == list(range(2 * PAGE))
    assert content(pool, second) == [*range(PAGE + 3), -1]
    pool.check()


def test_a_pool_that_never_grows_says_when_it_is_full_and_loses_nothing():
    pool = pool_of(num_pages=2, grows=False)
    first = pool.open()
    append(pool, first, [1.0] * (2 * PAGE))
    second = pool.fork(first, PAGE)
    with pytest.raises(MemoryError):
        pool.reserve(second.index, PAGE + 1, PAGE)
    with pytest.raises(MemoryError):
        pool.reserve(second.index, PAGE, 0)  # its own copy of the shared page
    pool.check()
    second.close()
    first.close()
    third = pool.open()
    with pytest.raises(MemoryError):
        pool.reserve(third.index, 3 * PAGE)
    third.close()
    pool.check()
    assert pool.num_free_pages == 2


def test_any_order_of_sharing_writing_and_closing_keeps_every_text():
    draw = random.Random(0)
    pool = pool_of()
    texts = {}
    for step in range(400):
        action = draw.choice(["open", "share", "write", "roll back", "close"])
        slot = draw.choice([*texts]) if texts else None
        if action == "open" or slot is None:
            texts[pool.open()] = []
        elif action == "share" and len(texts) < 12:
            shared = pool.fork(slot, draw.randrange(len(texts[slot]) + 1))
            texts[shared] = texts[slot][: shared.length]
        elif action == "write" and slot.length < 6 * PAGE:
            fresh = [float(step)] * draw.randrange(1, PAGE)
            append(pool, slot, fresh)
            texts[slot] = texts[slot] + fresh
        elif action == "roll back":
            slot.length = draw.randrange(slot.length + 1)
            texts[slot] = texts[slot][: slot.length]
        elif action == "close":
            del texts[slot]
            slot.close()
        pool.check()
        if step % 20 == 0:
            for slot, text in texts.items():
                assert content(pool, slot) == text
    for slot in [*texts]:
        slot.close()
    assert pool.num_free_pages == pool.num_pages


@pytest.mark.parametrize("grown", ["pages", "slots"])
def test_slots_collected_while_the_pool_grows_are_returned(grown, monkeypatch):
    """The collector runs whenever it likes, in any thread: here, amid the growth."""
    pool = pool_of()
    kept = pool.open()
    dropped = [pool.open() for _ in range(pool.tables.shape[0] - 1)]
    for slot in dropped[:3]:
        append(pool, slot, [1.0] * PAGE)
    dropped.append(dropped)  # a cycle, which only the collector ends
    del dropped, slot
    for name in ("new_empty", "new_zeros"):
        make = getattr(torch.Tensor, name)

        def collecting(*args, make=make, **kwargs):
            gc.collect()
            return make(*args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, collecting)
    if grown == "slots":
        pool.open().close()
    append(pool, kept, list(range(2 * PAGE)))
    monkeypatch.undo()
    pool.check()
    assert content(pool, kept) == list(range(2 * PAGE))
    kept.close()
    assert pool.num_free_pages == pool.num_pages
    num_slots = pool.tables.shape[0]
    all_slots = [pool.open() for _ in range(num_slots)]
    assert len({slot.index for slot in all_slots}) == num_slots == pool.tables.shape[0]


@pytest.mark.parametrize("loss", ["a page", "a holder"])
def test_the_check_finds_what_was_lost(loss):
    pool = pool_of()
    slot = pool.open()
    append(pool, slot, [1.0])
    if loss == "a page":
        pool._free_pages.pop()
    else:
        pool._num_holders[pool._pages[slot.index][0]] += 1
    with pytest.raises(AssertionError):
        pool.check()
