"""Host-led rounds over pages, in plain torch: passes of few shapes, and the tokens of plain
decoding."""

from dataclasses import replace

import pytest
import torch

from dspark.checkpoints.eagle3_config import Eagle3Config
from dspark.checkpoints.heads import open_draft, open_head
from dspark.drafters.base import Drafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.eagle3 import Eagle3Drafter
from dspark.drafters.lookup import LookupDrafter
from dspark.engine.loop import Engine
from dspark.engine.rounds.captured_host import CapturedHostRounds
from dspark.engine.rounds.page_room import page_counts
from dspark.engine.schedule.policies import FullSchedule, ThresholdSchedule
from dspark.errors import MemoryFullError
from dspark.kvcache import sizing
from dspark.targets.base import Pass
from tests.engine.paged import paged  # noqa: F401
from tests.engine.pairs import GOLDEN, PROMPT, decode, golden, request

pytestmark = pytest.mark.usefixtures("paged")
ASKS = [request(PROMPT[: 3 + 4 * i], 24 + i) for i in range(3)]


def engine_of(drafter: str) -> Engine:
    """MTP is Eagle3 with one draft; a head of another layout than Qwen3's runs unpaged."""
    variant = {"eagle3": "eagle3", "mtp": "eagle3", "other layout": "dflash"}.get(
        drafter, "vanilla"
    )
    engine = golden(variant).engine
    if drafter == "eagle3":
        return engine
    tables = (engine.target.embedding(), engine.target.output_head())
    made: Drafter = LookupDrafter()
    if drafter != "lookup":
        config, tensors = open_draft(open_head(GOLDEN / variant / "draft"))
        if isinstance(config, Eagle3Config):
            made = Eagle3Drafter(replace(config, ttt_length=1), tensors, *tables)
        else:
            made = DSparkDrafter(config, tensors, *tables)
    return Engine(engine.target, made, FullSchedule())


@pytest.mark.parametrize("drafter", ["eagle3", "lookup", "mtp", "other layout"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 11}])
def test_whatever_is_drafted_the_text_is_the_plain_one(drafter, sampling, monkeypatch):
    """Together and alone; no pass of a round is launched kernel by kernel."""
    engine = engine_of(drafter)
    assert isinstance(engine._rounds, CapturedHostRounds)
    monkeypatch.setattr(engine.target, "verify", lambda *_: pytest.fail("uncaptured"))
    asks = [replace(ask, sampling=replace(ask.sampling, **sampling)) for ask in ASKS]
    wanted = decode(Engine(engine.target, None, FullSchedule()), asks)
    assert decode(engine, asks) == wanted
    assert [decode(engine, [ask])[0] for ask in asks] == wanted
    sizes = {shape[1] for shape in engine._rounds._passes._passes}
    assert sizes <= {1, 1 + engine.drafter.block_size}


def rows(passed: Pass) -> torch.Tensor:
    return torch.cat([passed.logits, passed.taps], dim=1)


def test_a_pass_is_the_targets_own():
    """Of blocks of any length, in a batch of any size, beside idle lanes. To the bit where kernels
    run (tests/kernels/interpreted); PyTorch's sums depend on the pages that are read."""
    engine = golden("eagle3").engine
    target, passes = engine.target, engine._rounds._passes
    blocks = [torch.arange(n) + 5 for n in (1, 3, 2)]
    with torch.inference_mode():
        slots = [target.open() for _ in blocks]
        for slot, prompt in zip(slots, (4, 300, 17), strict=True):
            target.prefill(slot, torch.arange(prompt) % 60)
        ours, theirs = rows(passes(slots, blocks)), rows(target.verify(slots, blocks))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        alone = slots[:1], blocks[:1]
        ours, theirs = rows(passes(*alone)), rows(target.verify(*alone))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for slot in slots:
        slot.close()


def test_nothing_is_captured_in_the_middle_of_an_answer():
    """Warming up takes every shape of one request, and changes no token."""
    engine = golden("eagle3").engine
    counts = page_counts(engine.target.cache)
    assert counts[:2] == [1, 2]
    assert len(list(engine.warm_up())) == 2 * len(counts)
    shapes = {*engine._rounds._passes._passes}
    ask = request([1 + i % 60 for i in range(250)], 20)  # across the end of a page
    assert decode(engine, [ask]) == decode(golden("eagle3").engine, [ask])
    assert {*engine._rounds._passes._passes} == shapes


def test_memory_is_counted_as_where_the_device_leads(monkeypatch):
    monkeypatch.setattr(sizing, "usable_bytes", lambda device: 1_000_000)
    with pytest.raises(MemoryFullError, match="tokens"):
        golden("eagle3").engine.submit(request(PROMPT, 900))


def test_blocks_may_be_cut_short():
    session = golden("eagle3")
    engine = Engine(session.engine.target, session.engine.drafter, ThresholdSchedule(0.5))
    assert decode(engine, ASKS) == decode(engine, [replace(ask, plain=True) for ask in ASKS])
