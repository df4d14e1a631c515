"""Memory that runs short: the newest request makes way, and goes on with the same text."""

import pytest

from dspark.errors import InputError, MemoryFullError
from dspark.events import Failed, Finished
from dspark_kernels.paged_cache import PAGE
from tests.engine.paged import paged  # noqa: F401
from tests.engine.pairs import decode, golden, request
from tests.engine.test_service import drain, num_open

pytestmark = pytest.mark.usefixtures("paged")
ALMOST_A_PAGE = tuple(3 + (i * 7) % 50 for i in range(PAGE - 22))


def asks(**sampling):
    return [request((k + 1, *ALMOST_A_PAGE[k:]), 36, **sampling) for k in range(3)]


def answers(engine, requests) -> list[Finished]:
    ids = [engine.submit(each) for each in requests]
    done = {e.request_id: e for e in drain(engine) if isinstance(e, Finished)}
    return [done[request_id] for request_id in ids]


@pytest.mark.parametrize("variant", ["vanilla", "eagle3"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 3}])
def test_who_makes_way_writes_the_same_text(variant, sampling):
    engine = golden(variant, cache_tokens=3 * PAGE).engine
    before = num_open_pages(engine)
    found = answers(engine, asks(**sampling))
    assert sum(each.stats.preemptions for each in found) >= 1
    assert found[0].stats.preemptions == 0  # the oldest never does
    assert [each.token_ids for each in found] == [
        decode(golden(variant).engine, [ask])[0] for ask in asks(**sampling)
    ]
    engine.close()
    assert num_open_pages(engine) == before


def num_open_pages(engine) -> list[int]:
    pools = engine._rounds.room.pools
    return [pool.num_pages - pool.num_free_pages for pool in pools]


def test_what_is_written_stays_written_without_a_seed():
    """Every token is told once, and none is drawn again."""
    engine = golden("vanilla", cache_tokens=3 * PAGE).engine
    ids = [engine.submit(each) for each in asks(temperature=1.0)]
    events = drain(engine)
    done = {e.request_id: e for e in events if isinstance(e, Finished)}
    assert sum(each.stats.preemptions for each in done.values()) >= 1
    for request_id in ids:
        told = [e for e in events if e.request_id == request_id and not isinstance(e, Finished)]
        written = tuple(piece.token_id for event in told for piece in event.pieces)
        assert written == done[request_id].token_ids and len(written) == 36


def test_finished_requests_make_way_first():
    engine = golden("vanilla", cache_tokens=3 * PAGE).engine
    for k in range(3):
        decode(engine, [request((k + 1, *range(30)), 4)])
    assert len(engine._caches._kept) == 3
    (found,) = answers(engine, asks()[:1])
    assert found.stats.preemptions == 0 and len(found.token_ids) == 36
    assert len(engine._caches._kept) == 2


def test_a_request_waits_until_its_prompt_fits():
    engine = golden("vanilla", cache_tokens=2 * PAGE, max_requests=4).engine
    found = answers(engine, [request(ALMOST_A_PAGE, 8), request(range(30), 8)])
    assert [len(each.token_ids) for each in found] == [8, 8]
    assert not any(each.stats.preemptions for each in found)


def test_an_answer_without_a_limit_ends_with_the_memory():
    engine = golden("vanilla", cache_tokens=PAGE).engine
    (found,) = answers(engine, [request(ALMOST_A_PAGE, None)])
    assert found.reason == "context" and 0 < len(found.token_ids) < 22
    with pytest.raises(MemoryFullError):
        engine.submit(request(ALMOST_A_PAGE, 100))
    with pytest.raises(MemoryFullError):
        engine.submit(request((1, 2) * (PAGE // 2), None))


def test_memory_in_bytes_is_that_of_its_pages():
    """Of target and drafter together; what finished requests may keep of it can be bounded, too."""
    page = sum(pool.page_bytes for pool in golden("vanilla").engine._rounds.room.pools)
    engine = golden("vanilla", cache_bytes=4 * page - 1, prefix_cache_bytes=0).engine
    assert [pool.num_pages for pool in engine._rounds.room.pools] == [4, 4]  # one is scratch
    found = answers(engine, asks())
    assert sum(each.stats.preemptions for each in found) >= 1
    assert len(engine._caches._kept) == 0
    with pytest.raises(InputError, match="no page"):
        golden("vanilla", cache_bytes=page - 1)


def test_engines_on_one_target_do_not_block_each_other():
    """What one keeps makes way for the other."""
    session = golden("vanilla", cache_tokens=3 * PAGE)
    other = session.with_schedule(session.engine.config.schedule)
    for k in range(3):
        decode(session.engine, [request((k + 1, *range(30)), 4)])
    events = [*other.engine.run(asks()[:1])]
    assert not any(isinstance(event, Failed) for event in events)
    assert len(events[-1].token_ids) == 36
    assert num_open(other.engine)[0] > 1  # scratch, and what is kept
