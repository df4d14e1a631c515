"""Prompts that begin as earlier texts do: what is shared is not run again, and changes nothing."""

import pytest

from dspark.engine.prefix_cache import shared_prefix
from dspark.errors import InputError
from dspark.events import Finished, Round
from dspark_kernels.paged_cache import PAGE, num_pages_for
from tests.engine.paged import paged  # noqa: F401
from tests.engine.pairs import PROMPT, decode, golden, request

SYSTEM = tuple(3 + (i * 7) % 50 for i in range(40))
CHATS = [(*SYSTEM, *PROMPT[k:]) for k in range(3)]
LEADERS = pytest.mark.parametrize("leader", ["host", "device"])


@pytest.fixture
def open_engine(request):
    def opened(leader, **config):
        if leader == "device":
            request.getfixturevalue("paged")
        return golden("vanilla", **config).engine

    return opened


def answered(engine, ask) -> Finished:
    *_, finished = engine.run([ask])
    assert isinstance(finished, Finished)
    return finished


@LEADERS
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "seed": 5}])
def test_every_chat_goes_on_where_it_was(leader, sampling, open_engine):
    """Turn by turn of several chats; the last token of a prompt is always run, for its logits."""
    engine, fresh = open_engine(leader), open_engine(leader, prefix_cache_bytes=0)
    texts, lengths = list(CHATS), [0, 0, 0]
    for turn in range(3):
        for chat, text in enumerate(texts):
            asked = request((*text, 5 + turn, 6), 12, **sampling)
            found, wanted = answered(engine, asked), answered(fresh, asked)
            assert found.token_ids == wanted.token_ids
            assert found.stats.cached_tokens >= lengths[chat]
            if not chat and not turn:
                assert found.stats.cached_tokens == 0
            lengths[chat] = len(asked.prompt_ids) + len(found.token_ids) - 1
            texts[chat] = (*asked.prompt_ids, *found.token_ids)
    assert len(engine._caches._kept) == 3  # of each chat the last turn, which has all before


@LEADERS
def test_a_text_without_its_middle_shares_what_comes_before(leader, open_engine):
    """As where a template drops old thinking. The whole text stays for whoever repeats it."""
    engine = open_engine(leader)
    first = answered(engine, request(CHATS[0], 20)).token_ids
    shorter = (*CHATS[0], *first[:2], *first[9:], 7, 7)
    cut = shared_prefix((*CHATS[0], *first), shorter)
    found = answered(engine, request(shorter, 20))
    assert found.stats.cached_tokens == cut < len(shorter) - 2
    again = answered(engine, request((*CHATS[0], *first, 4), 20))
    assert again.stats.cached_tokens == len(CHATS[0]) + 20
    for text, tokens in ((shorter, found), ((*CHATS[0], *first, 4), again)):
        assert tokens.token_ids == decode(open_engine(leader), [request(text, 20)])[0]


@LEADERS
def test_drafts_go_on_as_well(leader, open_engine):
    """The drafter's cache is shared like the target's: the same drafts as without."""
    engine = open_engine(leader)
    first = answered(engine, request(CHATS[0], 20)).token_ids
    for asked in (
        request((*CHATS[0], *first, 9, 9), 20),
        request((*SYSTEM, *PROMPT[4:]), 20),
        request((*CHATS[0], *first, 9, 8), 20, plain=True),
    ):
        shared = [e for e in engine.run([asked]) if isinstance(e, Round | Finished)]
        alone = [e for e in open_engine(leader).run([asked]) if isinstance(e, Round | Finished)]
        assert [e.draft for e in shared[:-1]] == [e.draft for e in alone[:-1]]
        assert shared[-1].token_ids == alone[-1].token_ids
        assert shared[-1].stats.cached_tokens >= len(SYSTEM)


@LEADERS
def test_requests_share_what_another_has_just_read(leader, open_engine):
    engine = open_engine(leader)
    asks = [request(chat, 12) for chat in CHATS]
    done = {e.request_id: e for e in engine.run(asks) if isinstance(e, Finished)}
    alone = [decode(open_engine(leader), [ask])[0] for ask in asks]
    assert [done[k].token_ids for k in sorted(done)] == alone
    reused = [done[k].stats.cached_tokens for k in sorted(done)]
    assert reused[0] == 0 and min(reused[1:]) >= len(SYSTEM)


@pytest.mark.usefixtures("paged")
def test_what_is_shared_is_held_once():
    engine = golden("vanilla").engine
    pool, length = engine.target.cache.pool, PAGE + 20
    long = tuple(3 + (i * 11) % 50 for i in range(length))
    before = pool.num_free_pages
    for k in range(4):
        answered(engine, request((*long, k + 1), 4))
    assert len(engine._caches._kept) == 4
    assert before - pool.num_free_pages == 1 + 4  # the first page, and four ends
    engine.forget_texts()
    assert pool.num_free_pages == before
    assert num_pages_for(length) == 2


def test_the_text_used_longest_ago_leaves_first():
    engine = golden("vanilla").engine
    row = engine.target.held_bytes([engine.target.open()])
    engine = golden("vanilla", prefix_cache_bytes=2 * row).engine
    texts = [tuple((i * k) % 60 for i in range(30)) for k in (3, 5, 7)]
    for text in (texts[0], texts[1], texts[0], texts[2]):
        answered(engine, request(text, 4))
    kept = [each.token_ids[:30] for each in engine._caches._kept.texts(with_drafts=True)]
    assert kept == [texts[0], texts[2]]


def test_memory_that_is_not_on_pages_has_no_limit():
    with pytest.raises(InputError, match="not on pages"):
        golden("vanilla", cache_bytes=2**30)


@pytest.mark.parametrize(("budget", "count"), [(0, 0), (1, 1)])
def test_a_small_budget_keeps_the_last_text_and_none_keeps_nothing(budget, count):
    engine = golden("vanilla", prefix_cache_bytes=budget).engine
    for text in CHATS:
        answered(engine, request(text, 4))
    assert len(engine._caches._kept) == count
    engine.step()  # idle: counts what is open


def test_the_longest_shared_beginning():
    for length in range(9):
        text = tuple(range(8))
        other = (*text[:length], 99, *text[length + 1 :])
        assert shared_prefix(text, other) == min(length, 8)
        assert shared_prefix(text[:length], text) == min(length, 8)
