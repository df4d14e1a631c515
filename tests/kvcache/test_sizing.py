"""How much of a device the keys and values take; the device is a stand-in with a memory."""

from types import SimpleNamespace

import pytest
import torch

from dspark.config import EngineConfig
from dspark.engine.loop import Engine, default_chunk
from dspark.engine.schedule.policies import FullSchedule
from dspark.errors import MemoryFullError
from dspark.kvcache import caches, sizing
from dspark.kvcache.caches import HeadShape, PagedCache
from dspark.kvcache.sizing import WORKSPACE, fix_pages, page_bytes
from dspark_kernels import RotaryTable, backend
from dspark_kernels.paged_cache import PAGE, num_pages_for
from tests.engine.paged import paged  # noqa: F401
from tests.engine.pairs import golden

MORE_THAN_ENOUGH = 1 << 40


class Card:
    """Its allocator holds memory that nobody uses until `empty_cache`."""

    def __init__(self, free: int, held: int) -> None:
        self.free, self.held = free, held

    def empty_cache(self) -> None:
        self.free, self.held = self.free + self.held, 0


@pytest.fixture
def pages_of(monkeypatch):
    """The pages that a cache of one kibibyte a page gets on a card."""

    def fixed(card: Card, max_pages: int) -> int:
        monkeypatch.setattr(torch.cuda, "empty_cache", card.empty_cache)
        monkeypatch.setattr(sizing, "free_memory", lambda device: card.free)
        monkeypatch.setattr(sizing, "page_bytes", lambda cache: 1024)
        sizes = []
        cache = SimpleNamespace(
            device=torch.device("cuda", 0),
            pool=SimpleNamespace(num_pages=4, grows=True),
            fix=lambda num_pages, *rest: sizes.append(num_pages),
        )
        fix_pages([cache], 8, max_pages, 4096, leaves_room=False)
        return sizes[0]

    return fixed


def test_what_the_allocator_only_holds_is_given_back_before_it_is_counted(pages_of):
    assert pages_of(Card(WORKSPACE, held=1000 * 1024), 5000) == 900


def test_no_more_is_taken_than_is_asked_for(pages_of):
    assert pages_of(Card(MORE_THAN_ENOUGH, held=0), 40) == 41  # and one for idle lanes


def test_too_little_is_told(pages_of):
    with pytest.raises(MemoryFullError, match="too little for a chat"):
        pages_of(Card(WORKSPACE, held=1024), 40)


@pytest.mark.usefixtures("paged")
@pytest.mark.parametrize(
    ("config", "requests"),
    [(EngineConfig(max_requests=1), 1), (EngineConfig(max_requests=3), 3), (EngineConfig(), 8)],
)
def test_an_engine_takes_the_memory_of_the_requests_that_it_may_run(config, requests, monkeypatch):
    monkeypatch.setattr(sizing, "usable_bytes", lambda device: MORE_THAN_ENOUGH)
    session = golden("vanilla", max_requests=config.max_requests)
    rounds = session.engine._rounds
    assert rounds.capacity == requests
    longest = num_pages_for(session.context_limit + rounds._slack)
    assert rounds._cache.pool.num_pages == requests * longest + 1


@pytest.mark.usefixtures("paged")
def test_a_config_bounds_the_tokens(monkeypatch):
    monkeypatch.setattr(sizing, "usable_bytes", lambda device: MORE_THAN_ENOUGH)
    rounds = golden("vanilla", cache_tokens=3 * PAGE - 5).engine._rounds
    assert [cache.pool.num_pages for cache in rounds._caches] == [4, 4]


def test_prompts_come_in_large_chunks_where_kernels_run(monkeypatch):
    """And in float32, for which PyTorch has no such attention, in small ones."""
    card, cpu = torch.device("cuda", 0), torch.device("cpu")
    answer = backend.Backend("triton", "a test")
    monkeypatch.setattr("dspark.engine.loop.choose_backend", lambda device: answer)
    assert default_chunk(card, torch.bfloat16) == default_chunk(card, torch.float16) == 2048
    assert default_chunk(card, torch.float32) == default_chunk(cpu, torch.float32) == 256
    answer = backend.Backend("torch", "a test")
    assert default_chunk(card, torch.float16) == 256


def test_a_chunk_is_the_configs_or_the_devices(monkeypatch):
    monkeypatch.setattr("dspark.engine.loop.default_chunk", lambda device, dtype: 70)
    target = golden("vanilla").engine.target
    sizes = [
        Engine(target, None, FullSchedule(), config=config)._chunk_size
        for config in (EngineConfig(), EngineConfig(prefill_chunk=5))
    ]
    assert sizes == [70, 5]


@pytest.mark.usefixtures("paged")
@pytest.mark.parametrize(("dtype", "shared"), [(torch.float32, False), (torch.bfloat16, True)])
def test_a_chunk_in_float32_asks_for_a_kernel_that_gpus_have(dtype, shared, monkeypatch):
    shape, asked = HeadShape(1, 4, 2, 16, scale=0.25), []
    rotary = RotaryTable(torch.ones(8), 1.0, dtype)
    cache = PagedCache(shape, rotary, torch.device("cpu"), dtype)
    whole = torch.nn.functional.scaled_dot_product_attention

    def spy(query, keys, values, **named):
        asked.append((keys.shape[1], named["enable_gqa"]))
        return whole(query, keys, values, **named)

    monkeypatch.setattr(caches, "F", SimpleNamespace(scaled_dot_product_attention=spy))
    slot = cache.open()
    rows = cache.at([slot], [80], causal=True)
    heads = torch.randn(80, shape.num_heads + 2 * shape.num_kv_heads, shape.head_dim).to(dtype)
    with torch.inference_mode():
        rows(0, heads, None)
    assert asked == [(shape.num_kv_heads if shared else shape.num_heads, shared)]


@pytest.mark.parametrize(("kv", "row"), [("auto", 2 * 128), ("int8", 132), ("fp8", 132)])
def test_a_page_is_that_of_every_layer(kv, row):
    """A row's codes come with four bytes of scale."""
    meta = torch.device("meta")
    rotary = RotaryTable(torch.ones(64), 1.0, torch.bfloat16)
    cache = PagedCache(HeadShape(36, 32, 8, 128, 1.0), rotary, meta, torch.bfloat16, kv)
    assert page_bytes(cache) == 256 * 36 * 2 * 8 * row
