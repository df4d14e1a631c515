"""The path of a GPU, in plain torch: paged caches agree with transformers and with the pool."""

from dataclasses import replace

import pytest
import torch

from dspark.drafters.lookup import LookupDrafter
from dspark.engine.loop import Engine
from dspark.engine.rounds.device import DeviceRounds
from dspark.engine.rounds.host import HostRounds
from dspark.engine.schedule.policies import FullSchedule
from dspark.kvcache.caches import PagedCache
from dspark.targets.dense_files import load_dense, read_config
from dspark.targets.hf import load_hf
from tests.engine.paged import paged  # noqa: F401
from tests.engine.pairs import GOLDEN, PROMPT, decode, golden, request
from tests.engine.test_rollback import PLACE, check_rollback

pytestmark = pytest.mark.usefixtures("paged")


@pytest.mark.parametrize("model", ["tiny_llama_dir", "tiny_qwen3_dir", "golden"])
@pytest.mark.parametrize("chunk", [23, 200])
def test_paged_target_agrees_with_transformers(model, chunk, request: pytest.FixtureRequest):
    folder = GOLDEN / "vanilla/target" if model == "golden" else request.getfixturevalue(model)
    dense = load_dense(folder, read_config(folder), tap_layers=(-1, 0, 1), **PLACE)
    assert isinstance(dense.cache, PagedCache)
    hf = load_hf(folder, tap_layers=(-1, 0, 1), stop_token_ids=frozenset(), **PLACE)
    ids = torch.arange(300) % 61  # more than a page
    with torch.inference_mode():
        slots = dense.open(), hf.open()
        for part in ids.split(chunk):
            ours, theirs = (t.prefill(s, part) for t, s in zip((dense, hf), slots, strict=True))
            torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(ours.taps, theirs.taps, atol=1e-4, rtol=1e-4)
        ours, theirs = (t.verify([s], [ids[:5]]) for t, s in zip((dense, hf), slots, strict=True))
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.taps, theirs.taps, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", ["tiny_llama_dir", "tiny_qwen3_dir"])
def test_paged_targets_roll_back(model, request: pytest.FixtureRequest):
    folder = request.getfixturevalue(model)
    check_rollback(load_dense(folder, read_config(folder), tap_layers=(0, 1), **PLACE))


@pytest.mark.parametrize("variant", ["eagle3", "vanilla"])
def test_the_host_leads_other_drafters_over_pages(variant):
    session = golden(variant, max_requests=100)
    engine = session.engine
    if variant == "vanilla":
        engine = Engine(engine.target, LookupDrafter(), FullSchedule())
    assert isinstance(engine._rounds, HostRounds)
    block = engine.drafter.block_size
    assert engine._rounds.capacity == 64 // (block + 1)  # a pass has 64 rows at most
    asks = [request(PROMPT[: 3 + i], 20) for i in range(3)]
    plain = [decode(engine, [replace(ask, plain=True)])[0] for ask in asks]
    assert decode(engine, asks) == plain


class Delegate:
    """Of no class that the engine knows, with all that a contract asks for."""

    def __init__(self, of, names: str) -> None:
        for name in names.split():
            setattr(self, name, getattr(of, name))


TARGET = (
    "spec device dtype embedding output_head open close length prefill verify commit truncate fork "
    "held_bytes"
)


def test_the_device_leads_whatever_keeps_its_contract():
    real = golden("vanilla").engine
    target = Delegate(real.target, f"{TARGET} tap_layers paged_cache run")
    drafter = Delegate(
        real.drafter,
        "block_size target_layer_ids num_weights open close extend propose fork truncate cache "
        "block_rows has_confidence draft_vocabulary calibration draft append choose_taps",
    )
    engine = Engine(target, drafter, FullSchedule())
    assert isinstance(engine._rounds, DeviceRounds)
    ask = request(PROMPT, 20)
    assert decode(engine, [ask]) == decode(engine, [replace(ask, plain=True)])


@pytest.mark.parametrize("lacks", ["run", "pages"])
def test_the_host_leads_what_lacks_a_part_of_it(lacks):
    real = golden("vanilla").engine.target
    target = Delegate(real, f"{TARGET} tap_layers paged_cache" + " run" * (lacks != "run"))
    if lacks == "pages":
        target.paged_cache = lambda: None
    assert isinstance(Engine(target, None, FullSchedule())._rounds, HostRounds)
