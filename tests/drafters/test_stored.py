"""A head in int8 copies on the CPU's kernels, beside a target in stored codes."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from dspark import hub
from dspark.checkpoints.deepspec import write_draft_vocabulary, write_head
from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.checkpoints.head_config import Calibration, HeadConfig
from dspark.config import EngineConfig, RuntimeConfig, ScheduleConfig
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.stored import StoredDSparkDrafter
from dspark.engine.sampling import BatchChooser, Sampler
from dspark.engine.scheduled_engine import sps_folder
from dspark.engine.session import Session, load_drafter, open_session
from dspark.errors import InputError
from dspark.events import LoadProgress, Round
from dspark.progress import follow
from dspark_kernels.cpu import runtime
from dspark_kernels.cpu.pool import Pool
from dspark_kernels.cpu.processor import variants
from tests.engine.pairs import decode, request
from tests.targets.test_gguf import TOKENS, write

pytestmark = pytest.mark.skipif(not variants(), reason="no kernels for this processor")
of_both_kinds = pytest.mark.parametrize("session", ["dspark", "dflash"], indirect=True)
of_vocabularies = pytest.mark.parametrize(
    "session", ["dspark", "dflash", "dspark of few", "dflash of few"], indirect=True
)
CLOSE = 0.05  # of the hidden states' size: what weights of 8 bits may add up to


@pytest.fixture(autouse=True)
def kept_kernels(tmp_path_factory, monkeypatch) -> None:
    """Compiled once for all tests."""
    monkeypatch.setattr(runtime, "_cache_folder", tmp_path_factory.getbasetemp() / "kernels")


OWN = {
    **{"markov_type": "vanilla", "markov_rank": 8, "has_confidence": True},
    **{"confidence_with_markov": True, "confidence_temperatures": (1.5, 0.5, 1.0, 2.0)},
    "greedy_confidence": Calibration((0.7, 1.1, 3.0, 1.0), (-0.4, 0.3, 0.0, 1.0)),
}
HEADS = {
    "dspark": OWN,
    "dflash": {"markov_type": "none"},
    "gated": {**OWN, "markov_type": "gated"},
    "rnn": {**OWN, "markov_type": "rnn"},
    "capped": {**OWN, "final_logit_softcapping": 20.0},
}
FIXED_TOKENS = 200


def head_sizes(target: Path) -> dict[str, Any]:
    """Of the config of any head beside this target."""
    raw = json.loads((target / "config.json").read_text())
    return {
        **{name: raw[name] for name in ("vocab_size", "hidden_size", "intermediate_size")},
        **{"num_heads": 4, "num_kv_heads": 2, "head_dim": 32},
        **{"rms_norm_eps": 1e-6, "rope_theta": 10000.0},
        **{"target_layer_ids": (-1, 0), "num_target_layers": raw["num_hidden_layers"]},
    }


def write_random(folder: Path, config: HeadConfig) -> None:
    generator = torch.Generator().manual_seed(5)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.1
        for name, shape in config.expected_tensors().items()
        if name not in ("embed_tokens.weight", "lm_head.weight")
    }
    folder.mkdir()
    write_head(folder, config, tensors, {})


def write_random_head(folder: Path, target: Path, kind: str = "dspark") -> Path:
    """A kind "... of few" drafts from FIXED_TOKENS and a request's own tokens."""
    block = {"num_layers": 2, "block_size": 4, "mask_token_id": 3}
    config = DSparkConfig(**head_sizes(target), **block, **HEADS[kind.removesuffix(" of few")])
    write_random(folder, config)
    if kind.endswith(" of few"):
        write_draft_vocabulary(folder, torch.arange(0, FIXED_TOKENS))
    return folder


@pytest.fixture
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Session:
    write(tmp_path / "model.gguf", "llama", Kind.Q8_0)
    target = hub.resolve_target(str(tmp_path / "model.gguf"))
    head = write_random_head(tmp_path / "head", target, getattr(request, "param", "dspark"))
    files = hub.PairFiles("toy", target, head)
    config = EngineConfig(schedule=ScheduleConfig("full"))
    return follow(open_session(files, RuntimeConfig("cpu"), config))


def filled(drafter: DSparkDrafter, lengths: list[int], width: int) -> list:
    """Slots with a context of random tokens and taps, the same for every drafter."""
    slots = [drafter.open() for _ in lengths]
    for index, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        generator = torch.Generator().manual_seed(index)
        taps = torch.randn(length, width, generator=generator)
        ids = torch.randint(0, len(TOKENS), (length,), generator=generator)
        drafter.extend([slot], [ids], [taps])
    return slots


def chooser(session: Session, count: int) -> BatchChooser:
    sampler = Sampler(request().sampling, 0)
    return BatchChooser([sampler] * count, [1] * count, session.engine.target.spec.vocab_size)


@torch.inference_mode()
def test_a_block_is_that_of_the_head_in_numbers_but_for_rounding(session, tmp_path) -> None:
    own = session.engine.drafter
    plain = load_drafter(tmp_path / "head", session.engine.target, "bf16")
    assert type(own) is StoredDSparkDrafter
    assert type(plain) is DSparkDrafter
    anchors = torch.tensor([7, 9])
    found, wanted = (
        each._backbone(filled(each, [40, 100], own.config.tap_width), anchors)
        for each in (own, plain)
    )
    assert (found - wanted).norm() < CLOSE * wanted.norm()


@torch.inference_mode()
def test_a_draft_is_the_same_in_any_company_and_however_its_context_came(session) -> None:
    drafter, width = session.engine.drafter, session.engine.drafter.config.tap_width
    lengths = [3, 40, 15, 16, 100, 300, *range(20, 40)]
    slots, anchors = filled(drafter, lengths, width), torch.arange(len(lengths)) + 2
    together = drafter.propose(slots, anchors, chooser(session, len(slots)))
    hidden = drafter._backbone(slots, anchors).view(len(slots), drafter.config.block_rows, -1)
    for row in (0, 4, 5, 25):
        alone = drafter.propose([slots[row]], anchors[row : row + 1], chooser(session, 1))
        assert torch.equal(alone.token_ids[0], together.token_ids[row])
        assert torch.equal(drafter._backbone([slots[row]], anchors[row : row + 1]), hidden[row])
    generator, slot = torch.Generator().manual_seed(4), drafter.open()
    taps = torch.randn(100, width, generator=generator)
    ids = torch.randint(0, len(TOKENS), (100,), generator=generator)
    for start in range(0, 100, 7):
        drafter.extend([slot], [ids[start : start + 7]], [taps[start : start + 7]])
    drafter.extend([slot], [ids[:9]], [taps[:9]])
    drafter.truncate(slot, 100)
    assert torch.equal(drafter._backbone([slot], anchors[4:5]), hidden[4])


@torch.inference_mode()
def test_taps_taken_in_within_a_pass_are_those_of_its_committed_rows(session) -> None:
    target, drafter = session.engine.target, session.engine.drafter
    blocks, kept = [[5, 6, 7, 8], [9], [11, 12, 13]], [2, 1, 3]
    slots = [target.open() for _ in blocks]
    for index, slot in enumerate(slots):
        target.prefill(slot, torch.arange(2, 22 + 30 * index))
    joined, apart = (filled(drafter, [20, 50, 80], drafter.config.tap_width) for _ in range(2))
    sizes = [len(block) for block in blocks]
    whole = target.verify(slots, [torch.tensor(block) for block in blocks])
    found = target.verify_ids(slots, blocks, lambda taps: drafter.job_of_taps(joined, sizes, taps))
    assert torch.equal(found.logits, whole.logits) and torch.equal(found.taps, whole.taps)
    assert list(found.largest[0]) == whole.logits.argmax(1).tolist() and all(found.largest[1])
    drafter.keep(joined, [block[:n] for block, n in zip(blocks, kept, strict=True)])
    rows = [taps[:n] for taps, n in zip(whole.taps.split(sizes), kept, strict=True)]
    ids = [torch.tensor(block[:n]) for block, n in zip(blocks, kept, strict=True)]
    drafter.extend(apart, ids, rows)
    anchors = torch.tensor([3, 4, 5])
    hidden = [drafter._backbone(each, anchors) for each in (joined, apart)]
    assert torch.equal(*hidden)


@of_both_kinds
def test_a_greedy_round_is_two_calls_of_kernels_and_a_plain_one_is_one(
    session, monkeypatch
) -> None:
    calls, run = [], Pool.run
    monkeypatch.setattr(Pool, "run", lambda pool, jobs: (calls.append(jobs), run(pool, jobs)))
    for plain, most in ((True, 1), (False, 2)):
        rounds = 0
        for event in session.engine.run([request([5, 6, 7], 24, plain=plain)]):
            if isinstance(event, Round):
                rounds += 1
                assert len(calls) == most
            calls.clear()
        assert rounds > 3


@of_vocabularies
@pytest.mark.parametrize("sampling", [[{}], [{"temperature": 0.9, "seed": 3}, {}]])
@torch.inference_mode()
def test_one_call_chooses_what_the_head_in_numbers_chooses(session, sampling) -> None:
    drafter, width = session.engine.drafter, session.engine.drafter.config.tap_width
    slots, anchors = filled(drafter, [*range(20, 40)], width), torch.arange(20) + 2
    size = session.engine.target.spec.vocab_size
    configs = [request(**each).sampling for each in sampling * len(slots)]

    def proposed(propose):
        samplers = [Sampler(configs[index], index) for index in range(len(slots))]
        told = [index % 3 > 0 for index in range(len(slots))]
        asking = BatchChooser(samplers, range(7, 107, 5), size, tells_probs=told)
        return propose(slots, anchors, asking), asking

    (own, _), (plain, one_by_one) = map(
        proposed, (drafter.propose, super(StoredDSparkDrafter, drafter).propose)
    )
    assert (own.token_ids == plain.token_ids).float().mean() > 0.9  # but for rounding
    assert len(own.token_ids.unique()) > 10
    same = (own.token_ids == plain.token_ids).cumprod(1).bool()
    before = torch.cat([torch.ones_like(same[:, :1]), same[:, :-1]], dim=1)
    assert (own.confidences is not None) == drafter.config.has_confidence
    if own.confidences is not None and plain.confidences is not None:
        close = {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(own.confidences[before], plain.confidences[before], **close)
    assert own.chosen_probs is not None
    assert [len(each) for each in own.chosen_probs] == [0, 4, 4] * 6 + [0, 4]
    pairs = zip(own.chosen_probs, one_by_one.chosen_probs, same.tolist(), strict=True)
    for mine, theirs, is_same in pairs:
        known = [both for *both, equal in zip(mine, theirs, is_same, strict=False) if equal]
        assert all(one == pytest.approx(other, rel=0.02) for one, other in known)


@pytest.mark.parametrize("session", ["gated", "rnn", "capped"], indirect=True)
@torch.inference_mode()
def test_heads_without_such_a_call_choose_what_they_choose_in_numbers(session, tmp_path) -> None:
    own = session.engine.drafter
    assert own._sequential is None
    check_drafts_of_numbers(session, load_drafter(tmp_path / "head", session.engine.target, "bf16"))


def check_drafts_of_numbers(session: Session, plain: DSparkDrafter) -> None:
    """Most drafts are the same; the copies' rounding turns some."""
    own, anchors = session.engine.drafter, torch.arange(20) + 2
    found, wanted = (
        each.propose(filled(each, [*range(20, 40)], own.config.tap_width), anchors, asking)
        for each in (own, plain)
        for asking in [chooser(session, len(anchors))]
    )
    same = (found.token_ids == wanted.token_ids).float().mean()
    assert same > 0.8 and len(found.token_ids.unique()) > 3


@torch.inference_mode()
def test_a_round_in_two_calls_tells_the_probabilities_that_numbers_have(session, tmp_path) -> None:
    files = hub.PairFiles("toy", hub.resolve_target(str(tmp_path / "model.gguf")), None)
    in_numbers = follow(open_session(files, RuntimeConfig("cpu", "float32"), EngineConfig()))
    text = [5, 6, 7]
    quiet, told = (
        [
            each
            for each in session.engine.run([replace(request(text, 24), tells_probs=asks)])
            if isinstance(each, Round)
        ]
        for asks in (False, True)
    )
    assert [(each.draft, each.next) for each in told] == [(each.draft, each.next) for each in quiet]
    assert all(each.target_probs is None and each.draft_probs is None for each in quiet)
    for each in told:
        assert len(each.target_probs) == each.verified and len(each.draft_probs) == len(each.draft)
        for at, token in enumerate(each.draft[: each.verified]):
            ids = [*text, each.anchor, *each.draft[:at]]
            own, wanted = (s.next_logits(ids).softmax(0)[token] for s in (session, in_numbers))
            assert each.target_probs[at] == pytest.approx(float(own), rel=1e-4)
            assert each.target_probs[at] == pytest.approx(float(wanted), rel=0.1)
        text += [each.anchor, *each.draft[: each.accepted]]


@of_both_kinds
def test_seeded_drafts_write_what_plain_decoding_writes(session) -> None:
    prompts = [[2 + (7 * i + j) % 250 for j in range(5 + 11 * i)] for i in range(3)]
    how = {"temperature": 0.8, "seed": 11}
    plain = [decode(session.engine, [request(p, 16, plain=True, **how)])[0] for p in prompts]
    assert decode(session.engine, [request(p, 16, **how) for p in prompts]) == plain
    mixed = [request(prompts[0], 16, **how), request(prompts[1], 16)]
    assert decode(session.engine, mixed)[0] == plain[0]


def test_rounds_without_drafts_draw_by_entropy_as_by_a_seed(session, monkeypatch) -> None:
    """And by a seed the draws are counted over seeds; so what no seed draws is as exact."""
    monkeypatch.setattr(session.engine, "_entropy", SimpleNamespace(getrandbits=lambda bits: 77))
    prompt, how = list(range(2, 12)), {"temperature": 0.8, "top_p": 0.9, "plain": True}
    whole = decode(session.engine, [request(prompt, 12, **how)])[0]
    rest = decode(session.engine, [request([*prompt, whole[0]], 11, seed=77, **how)])[0]
    assert whole[1:] == rest and len(set(whole)) > 3


@of_both_kinds
def test_drafts_write_what_plain_decoding_writes(session) -> None:
    prompts = [[2 + (7 * i + j) % 250 for j in range(5 + 11 * i)] for i in range(5)]
    plain = [decode(session.engine, [request(p, 24, plain=True)])[0] for p in prompts]
    drafted = [request(p, 24) for p in prompts]
    assert decode(session.engine, drafted) == plain
    assert decode(session.engine, drafted[:1]) == plain[:1]


def test_fp8_is_for_a_gpu(session, tmp_path) -> None:
    with pytest.raises(InputError, match="GPU"):
        load_drafter(tmp_path / "head", session.engine.target, "fp8")


def test_what_a_pass_costs_is_kept_apart_for_codes_copies_and_numbers(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("DSPARK_HOME", str(tmp_path / "home"))
    write(tmp_path / "model.gguf", "llama", Kind.Q8_0)
    target = hub.resolve_target(str(tmp_path / "model.gguf"))
    files = hub.PairFiles("toy", target, write_random_head(tmp_path / "head", target))
    ways = (
        RuntimeConfig("cpu"),
        RuntimeConfig("cpu", draft_weights="bf16"),
        RuntimeConfig("cpu", "float32"),
    )
    for count, runtime_config in enumerate(ways, 1):
        follow(open_session(files, runtime_config, EngineConfig()))
        assert len(set(sps_folder().glob("*.json"))) == count


def test_all_kernels_of_a_pair_are_built_before_its_weights_are_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DSPARK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("dspark.engine.session.keep_compiled", runtime.keep_compiled)
    runtime._made.clear()
    write(tmp_path / "model.gguf", "llama", Kind.Q6_K)
    target = hub.resolve_target(str(tmp_path / "model.gguf"))
    files = hub.PairFiles("toy", target, write_random_head(tmp_path / "head", target))
    built, shown = {}, []

    def look(step: LoadProgress) -> None:
        built[step.stage] = {path.name for path in (tmp_path / "home").rglob("*.o")}
        shown.append(step)

    config = EngineConfig(schedule=ScheduleConfig("full"))
    session = follow(open_session(files, RuntimeConfig("cpu"), config), look)
    decode(session.engine, [request([5, 6, 7], 12)])
    steps = [step for step in shown if step.stage.startswith("building kernels")]
    assert [step.done for step in steps] == list(range(len(steps)))
    assert {step.total for step in steps} == {len(steps)}
    look(LoadProgress("answered", 0, None))
    assert any(name.startswith("matrix_q8_0") for name in built["answered"])
    assert built["answered"] == built["reading the head"]
