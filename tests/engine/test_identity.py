"""Promise 1: greedy output never depends on drafter, schedule, chunk, company or warm cache."""

import shutil
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dspark.checkpoints.deepspec import update_head_config, write_draft_vocabulary
from dspark.config import ScheduleConfig
from dspark.engine.schedule.policies import SpsSchedule
from dspark.events import Round
from dspark.targets.dense_files import load_dense, read_config
from dspark.targets.hf import load_hf
from tests.engine.paged import paged  # noqa: F401
from tests.engine.pairs import (
    GOLDEN,
    PROMPT,
    decode,
    golden,
    open_pair,
    request,
    scheduled,
    with_scheduler,
)

PROMPTS = [PROMPT, PROMPT[:3], PROMPT * 7]


@pytest.mark.parametrize(
    "variant", ["vanilla", "gated", "rnn", "dflash", "dflash2", "domino", "eagle3"]
)
def test_every_schedule_equals_plain_decoding(variant):
    session = golden(variant, prefill_chunk=40)
    plain = [decode(session.engine, [request(p, plain=True)])[0] for p in PROMPTS]
    assert [decode(session.engine, [request(p)])[0] for p in PROMPTS] == plain
    assert [decode(scheduled(session), [request(p)])[0] for p in PROMPTS] == plain
    threshold = session.with_schedule(ScheduleConfig("threshold", 0.4))
    assert [decode(threshold.engine, [request(p)])[0] for p in PROMPTS] == plain


def test_temperatures_change_confidences_and_never_the_text(tmp_path):
    shutil.copytree(GOLDEN / "vanilla" / "draft", tmp_path / "draft")
    raw = golden("vanilla")
    size = raw.engine.drafter.block_size
    chosen = [0.5 + 0.75 * k for k in range(size)]
    update_head_config(tmp_path / "draft", {"confidence_temperatures": chosen})
    scaled = open_pair(GOLDEN / "vanilla" / "target", tmp_path / "draft")
    plain = [decode(raw.engine, [request(p, plain=True)])[0] for p in PROMPTS]
    for engine in (scaled.engine, scheduled(scaled), _thresholded(scaled)):
        assert [decode(engine, [request(p)])[0] for p in PROMPTS] == plain
    before, after = (
        torch.tensor([e.confidence for e in s.engine.run([request()]) if isinstance(e, Round)])
        for s in (raw, scaled)
    )
    torch.testing.assert_close(after.logit(), before.logit() / torch.tensor(chosen))


@pytest.fixture
def getfixture(request):
    return request.getfixturevalue


@pytest.mark.parametrize("leader", ["host", "device"])
def test_each_request_of_a_batch_has_the_calibration_of_its_kind(leader, tmp_path, getfixture):
    if leader == "device":
        getfixture("paged")
    shutil.copytree(GOLDEN / "vanilla" / "draft", tmp_path / "draft")
    raw = golden("vanilla")
    of_sampled = torch.linspace(0.5, 2.0, raw.engine.drafter.block_size)
    shifts = torch.linspace(-0.3, 0.6, len(of_sampled))
    of_greedy, own_shifts = of_sampled.flip(0) * 1.5, shifts.flip(0) - 0.1
    greedy = {"shifts": own_shifts.tolist(), "temperatures": of_greedy.tolist()}
    sampled = {"confidence_temperatures": of_sampled, "confidence_shifts": shifts}
    changes = {name: numbers.tolist() for name, numbers in sampled.items()}
    changes["greedy_confidence"] = greedy
    update_head_config(tmp_path / "draft", changes)
    own = open_pair(GOLDEN / "vanilla" / "target", tmp_path / "draft")
    asks = [request(), request(temperature=0.8, seed=3), request(PROMPTS[1])]
    before, after = (confidences_of(session.engine, asks) for session in (raw, own))
    for index, (then, now) in enumerate(zip(before, after, strict=True)):
        expected = (then.logit() + own_shifts) / of_greedy
        if index == 1:
            expected = (then.logit() + shifts) / of_sampled
        torch.testing.assert_close(now.logit(), expected, rtol=1e-4, atol=1e-4)


def confidences_of(engine, asks) -> list[torch.Tensor]:
    """[rounds, K] of each request, decoded together."""
    found: dict[int, list] = {}
    for event in engine.run(asks):
        if isinstance(event, Round):
            found.setdefault(event.request_id, []).append(event.confidence)
    return [torch.tensor(found[request_id]) for request_id in sorted(found)]


def _thresholded(session):
    return session.with_schedule(ScheduleConfig("threshold", 0.4)).engine


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_k": 20, "seed": 3}])
@pytest.mark.parametrize("variant", ["vanilla", "rnn", "dflash", "dflash2", "domino", "eagle3"])
def test_requests_together_equal_the_same_alone(variant, sampling):
    session = golden(variant)
    requests = [request(p, 20 + 7 * i, **sampling) for i, p in enumerate(PROMPTS)]
    requests.append(request(PROMPT[:9], 30, plain=True, **sampling))
    alone = [decode(session.engine, [one])[0] for one in requests]
    assert decode(session.engine, requests) == alone


def test_requests_together_under_the_scheduler_equal_plain_decoding():
    engine = scheduled(golden("vanilla"))
    plain = [decode(engine, [request(p, plain=True)])[0] for p in PROMPTS]
    assert decode(engine, [request(p) for p in PROMPTS]) == plain


def test_more_requests_than_fit_are_all_answered():
    session = golden("vanilla", max_requests=2)
    requests = [request(PROMPT[:n], 12) for n in range(2, 9)]
    alone = [decode(session.engine, [one])[0] for one in requests]
    assert decode(session.engine, requests) == alone


@pytest.mark.parametrize("model", ["tiny_llama_dir", "tiny_qwen3_dir"])
def test_random_head_changes_nothing(model, getfixture, make_tiny_head):
    target = getfixture(model)
    session = open_pair(target, make_tiny_head(target))
    ask = request(range(20, 50), 60)
    assert decode(session.engine, [ask]) == decode(session.engine, [replace(ask, plain=True)])


@pytest.mark.parametrize("variant", ["vanilla", "eagle3"])
@pytest.mark.parametrize("plain", [False, True])
def test_continuing_a_warm_cache_equals_a_fresh_one(variant, plain):
    engine = scheduled(golden(variant))
    first = decode(engine, [request(PROMPT, 30, plain=plain)])[0]
    longer = (*PROMPT, *first[:25], 5, 6, 7)
    warm = decode(engine, [request(longer, plain=plain)])
    assert warm == decode(scheduled(golden(variant)), [request(longer, plain=plain)])


def test_a_schedule_that_never_admits_is_plain_decoding():
    session = golden("vanilla")
    table = replace_verify_cost(100.0)
    engine = with_scheduler(session, SpsSchedule(table))
    assert decode(engine, [request()]) == decode(engine, [request(plain=True)])


def replace_verify_cost(seconds):
    from tests.engine.pairs import TABLE

    return replace(TABLE, verify_seconds=(1.0, seconds, 8 * seconds))


def test_logits_are_the_same_to_the_bit_in_any_block_and_company(tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    target = load_dense(
        *_saved_llama(tmp_path, **sizes),
        tap_layers=(),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    if target.output_head()._prepacked is None:
        pytest.skip("this build of torch packs no weights")
    ids = torch.randint(0, 300, (280,), generator=torch.Generator().manual_seed(0))
    slots = [target.open() for _ in range(4)]
    for slot, length in zip(slots, (250, 250, 31, 100), strict=True):
        target.prefill(slot, ids[:length])
    alone = []
    for i in range(250, 266):
        alone.append(target.verify(slots[:1], [ids[i : i + 1]]).logits)
        target.commit(slots[:1], [1])
    expected = torch.cat(alone)
    for size in range(2, 17):
        target.truncate(slots[0], 250)
        block = ids[250 : 250 + size]
        assert torch.equal(target.verify(slots[:1], [block]).logits, expected[:size]), size
    blocks = [ids[250:255], ids[250:266], ids[:16], ids[:16]]
    together = target.verify(slots, blocks).logits
    assert torch.equal(together[:21], torch.cat([expected[:5], expected]))


def _saved_llama(folder, **sizes):
    config = LlamaConfig(
        vocab_size=300, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder, read_config(folder)


@pytest.mark.parametrize("model", ["tiny_llama_dir", "tiny_qwen3_dir", "golden"])
def test_dense_agrees_with_transformers(model, request: pytest.FixtureRequest):
    is_golden = model == "golden"
    folder = GOLDEN / "vanilla/target" if is_golden else request.getfixturevalue(model)
    taps = (-1, 0, 2) if is_golden else (-1, 0, 1)
    place = {"device": torch.device("cpu"), "dtype": torch.float32}
    dense = load_dense(folder, read_config(folder), tap_layers=taps, **place)
    hf = load_hf(folder, tap_layers=taps, stop_token_ids=frozenset(), **place)
    ids = torch.arange(3, 60)
    with torch.inference_mode():
        for target in (dense, hf):
            assert target.spec.vocab_size == target.embedding().shape[0]
        slots = dense.open(), hf.open()
        for chunk in ids.split(23):
            ours, theirs = (t.prefill(s, chunk) for t, s in zip((dense, hf), slots, strict=True))
            torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(ours.taps, theirs.taps, atol=1e-4, rtol=1e-4)
        ours, theirs = (t.verify([s], [ids[:5]]) for t, s in zip((dense, hf), slots, strict=True))
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.taps, theirs.taps, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 9}])
def test_a_smaller_draft_vocabulary_changes_drafts_only(tmp_path, sampling):
    ids = torch.arange(0, 65, 2)
    shutil.copytree(GOLDEN / "vanilla" / "draft", tmp_path / "draft")
    write_draft_vocabulary(tmp_path / "draft", ids)
    session = open_pair(GOLDEN / "vanilla" / "target", tmp_path / "draft")
    events = list(session.engine.run([request(max_tokens=60, **sampling)]))
    rounds = [event for event in events if isinstance(event, Round)]
    drafted = {token for r in rounds for token in r.draft}
    held = {*request().prompt_ids, *events[-1].token_ids}
    assert drafted <= {*ids.tolist(), *held}
    assert drafted - set(ids.tolist())  # its own tokens are drafted too
    assert any(r.accepted for r in rounds)
    if not sampling:
        plain = decode(session.engine, [request(max_tokens=60, plain=True)])[0]
        assert events[-1].token_ids == plain
