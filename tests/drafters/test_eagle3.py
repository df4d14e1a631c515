"""Eagle3 heads draft as the reference does, whatever company, rollback and shape of the file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspark.checkpoints.deepspec import read_draft, read_draft_config, read_head, write_head
from dspark.checkpoints.eagle3_config import Eagle3Config
from dspark.config import SamplingConfig
from dspark.drafters.eagle3 import Eagle3Drafter
from dspark.engine.sampling import BatchChooser, Sampler
from dspark.engine.session import load_drafter
from dspark.errors import CheckpointError, PairMismatchError, StorageError
from dspark.events import Round
from dspark.models.eagle3_head import Eagle3Head
from dspark.targets.base import Target
from dspark.targets.load import load_target
from tests.engine.pairs import GOLDEN, PROMPT, decode, golden, open_pair, request

DRAFT = GOLDEN / "eagle3" / "draft"
PLACE = {"device": torch.device("cpu"), "dtype": torch.float32}
SHARED = ("embed_tokens.weight", "lm_head.weight")


class Recorder:
    """Greedy, and keeps the logits that it was asked about."""

    def __init__(self) -> None:
        self.logits: list[torch.Tensor] = []

    def choose(
        self, logits: torch.Tensor, token_ids: object = None
    ) -> tuple[torch.Tensor, list[None]]:
        self.logits.append(logits)
        return logits.argmax(dim=-1), [None] * len(logits)


@pytest.fixture
def draft_dir(tmp_path: Path) -> Path:
    shutil.copytree(DRAFT, tmp_path / "draft")
    return tmp_path / "draft"


@pytest.fixture(scope="module")
def pair() -> tuple[Target, Eagle3Drafter]:
    taps = read_draft_config(DRAFT).target_layer_ids
    target = load_target(GOLDEN / "eagle3" / "target", tap_layers=taps, **PLACE)
    drafter = load_drafter(DRAFT, target)
    assert isinstance(drafter, Eagle3Drafter)
    return target, drafter


def taps_of(target: Target, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return target.prefill(target.open(), ids).taps


def proposed(drafter: Eagle3Drafter, slots: list, anchors: list[int]) -> torch.Tensor:
    """Draft logits [R, K, V]."""
    recorder = Recorder()
    with torch.inference_mode():
        drafter.propose(slots, torch.tensor(anchors), recorder)
    return torch.stack(recorder.logits, dim=1)


def filled(drafter: Eagle3Drafter, ids: torch.Tensor, taps: torch.Tensor, *sizes: int):
    slot = drafter.open()
    with torch.inference_mode():
        for id_part, tap_part in zip(ids.split(list(sizes)), taps.split(list(sizes)), strict=True):
            drafter.extend([slot], [id_part], [tap_part])
    return slot


def test_first_logits_equal_the_reference(pair):
    target, drafter = pair
    cases = json.loads((GOLDEN / "eagle3" / "expected.json").read_text())
    assert cases
    for case in cases:
        ids = torch.tensor(case["prompt"])
        slot = filled(drafter, ids, taps_of(target, ids), len(ids))
        anchor = case["rounds"][0]["verify_ids"][0]
        logits = proposed(drafter, [slot], [anchor])[0, :, :8]
        torch.testing.assert_close(logits, torch.tensor(case["base_logits8"]), atol=1e-4, rtol=0)


def test_how_tokens_came_and_went_leaves_no_trace(pair):
    target, drafter = pair
    ids = torch.tensor(PROMPT)
    taps = taps_of(target, ids)
    expected = proposed(drafter, [filled(drafter, ids, taps, len(ids))], [5])
    drafted = []
    for sizes in ([1, 1, 16], [17, 1], [6, 12]):
        slot = filled(drafter, ids, taps, *sizes)
        drafted.append(proposed(drafter, [slot], [5]))
        proposed(drafter, [slot], [9])
        torch.testing.assert_close(proposed(drafter, [slot], [5]), drafted[-1], atol=0, rtol=0)
    for keep in (1, 7, 17):
        slot = filled(drafter, ids.flip(0), taps.flip(0), len(ids))
        drafter.truncate(slot, 0)
        with torch.inference_mode():
            wrong = torch.cat([ids[:keep], ids.new_tensor([63])])
            drafter.extend([slot], [wrong], [taps[: keep + 1]])
            drafter.truncate(slot, keep)
            drafter.extend([slot], [ids[keep:]], [taps[keep:]])
        drafted.append(proposed(drafter, [slot], [5]))
    for logits in drafted:
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_requests_of_unlike_lengths_draft_as_alone(pair):
    target, drafter = pair
    prompts = [torch.tensor(PROMPT), torch.tensor(PROMPT[:1]), torch.tensor(PROMPT * 3)]
    taps = [taps_of(target, ids) for ids in prompts]
    together = [drafter.open() for _ in prompts]
    with torch.inference_mode():
        drafter.extend(together, prompts, taps)
    logits = proposed(drafter, together, [3, 4, 5])
    for row, ids, tap, anchor in zip(logits, prompts, taps, [3, 4, 5], strict=True):
        alone = proposed(drafter, [filled(drafter, ids, tap, len(ids))], [anchor])[0]
        torch.testing.assert_close(row, alone, atol=1e-4, rtol=1e-4)


def test_no_confidences_and_whole_blocks_are_verified():
    session = golden("eagle3")
    rounds = [e for e in session.engine.run([request()]) if isinstance(e, Round)]
    assert all(r.confidence is None and r.verified == len(r.draft) == 5 for r in rounds)
    assert any(r.accepted for r in rounds)


def test_drafts_only_from_a_smaller_vocabulary(pair):
    target, _ = pair
    config, tensors = read_draft(DRAFT)
    assert isinstance(config, Eagle3Config)
    fixed = torch.arange(0, 65, 2)
    drafter = Eagle3Drafter(
        config, tensors, target.embedding(), target.output_head(), draft_vocabulary=fixed
    )
    ids = torch.tensor(PROMPT)
    slot = filled(drafter, ids, taps_of(target, ids), len(ids))
    chooser = BatchChooser([Sampler(SamplingConfig(temperature=1.0))], [len(PROMPT) + 1], 65)
    with torch.inference_mode():
        proposals = drafter.propose([slot], torch.tensor([3]), chooser)
    held = torch.zeros(65, dtype=torch.bool)
    held[fixed] = held[ids] = True
    probs = proposals.probs[0]
    assert probs.shape == (5, 65)
    assert (probs[:, ~held] == 0).all()
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(5))


# -- a single tap, a single draft: MTP-1 -----------------------------------------------------------


@pytest.fixture(scope="module")
def mtp_config() -> Eagle3Config:
    config = read_draft_config(DRAFT)
    assert isinstance(config, Eagle3Config)
    return replace(config, ttt_length=1, target_layer_ids=(5,))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 3}])
def test_one_tap_and_one_draft(tmp_path, mtp_config, sampling):
    tensors = {
        name: tensor[:, -48:].clone() if name == "fc.weight" else tensor
        for name, tensor in load_file(DRAFT / "model.safetensors").items()
    }
    write_head(tmp_path, mtp_config, tensors, {})
    session = open_pair(GOLDEN / "eagle3" / "target", tmp_path)
    prompts = [PROMPT, PROMPT[:1], PROMPT * 3]
    alone = [decode(session.engine, [request(p, **sampling)])[0] for p in prompts]
    assert decode(session.engine, [request(p, **sampling) for p in prompts]) == alone
    if not sampling:
        plain = [decode(session.engine, [request(p, plain=True)])[0] for p in prompts]
        assert alone == plain
    rounds = [e for e in session.engine.run([request()]) if isinstance(e, Round)]
    assert {len(r.draft) for r in rounds} == {1}


# -- files -----------------------------------------------------------------------------------------


def test_written_heads_read_back_the_same(tmp_path):
    config, tensors = read_draft(DRAFT)
    write_head(tmp_path, config, tensors, {"graft": {"seed": 1}})
    again, found = read_draft(tmp_path)
    assert again == config
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    ours = json.loads((tmp_path / "config.json").read_text())
    theirs = json.loads((DRAFT / "config.json").read_text())
    assert {k: theirs[k] for k in ours if k in theirs} == {k: ours[k] for k in ours if k in theirs}


@pytest.mark.parametrize("bias", [False, True])
def test_the_module_has_the_names_of_the_file(mtp_config, bias):
    config = replace(mtp_config, attention_bias=bias)
    own = {n: tuple(p.shape) for n, p in Eagle3Head(config).state_dict().items()}
    expected = config.expected_tensors()
    assert own == {n: shape for n, shape in expected.items() if n not in SHARED}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("fc.weight"), ["lacks", "fc.weight"]),
        (lambda t: t.update(odd=torch.ones(2)), ["unexpected", "odd"]),
        (
            lambda t: t.update({"layers.0.self_attn.q_proj.weight": torch.ones(64, 48)}),
            ["q_proj.weight", "[64, 48]", "[64, 96]"],
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(draft_dir, change, words):
    tensors = load_file(draft_dir / "model.safetensors")
    change(tensors)
    save_file(tensors, draft_dir / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        read_draft(draft_dir)
    assert all(word in caught.value.message for word in words)


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("ttt_length", None, "ttt_length"),
        ("ttt_length", 0, "ttt_length"),
        ("num_hidden_layers", 2, "2 layers"),
        ("target_layer_ids", [], "target_layer_ids"),
        ("target_layer_ids", [0, 6], "never a tap"),
        ("hidden_size", "wide", "malformed"),
        ("final_logit_softcapping", 0, "final_logit_softcapping"),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}, "YaRN"),
    ],
)
def test_impossible_config_is_refused(draft_dir, key, value, word):
    raw = json.loads((draft_dir / "config.json").read_text())
    raw[key] = value
    if value is None:
        del raw[key]
    (draft_dir / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=word):
        read_draft_config(draft_dir)


def test_a_dspark_head_is_expected_where_only_that_will_do():
    with pytest.raises(CheckpointError, match="Qwen3Eagle3Model"):
        read_head(DRAFT)


def test_head_of_another_model_is_refused(tiny_llama_dir):
    target = load_target(tiny_llama_dir, tap_layers=(), **PLACE)
    with pytest.raises(PairMismatchError):
        load_drafter(DRAFT, target)


def test_full_disk_leaves_the_old_head(draft_dir, monkeypatch):
    config, tensors = read_draft(draft_dir)
    before = (draft_dir / "model.safetensors").read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dspark.checkpoints.deepspec.save_file", full)
    with pytest.raises(StorageError):
        write_head(draft_dir, config, tensors, {})
    assert (draft_dir / "model.safetensors").read_bytes() == before
