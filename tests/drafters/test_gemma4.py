"""Heads made of Gemma4's layers: drafts of the reference, identity, files there and back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dspark.checkpoints.convert import convert_head
from dspark.checkpoints.detect import Packaging
from dspark.checkpoints.heads import find_head, read_draft, read_draft_config
from dspark.drafters.eagle3 import Eagle3Drafter
from dspark.drafters.kinds import build_head
from dspark.engine.session import load_drafter
from dspark.errors import CheckpointError
from dspark.events import Round
from dspark.targets.load import load_target
from tests.checkpoints import writers
from tests.drafters.test_eagle3 import SHARED, filled, proposed, taps_of
from tests.engine.pairs import GOLDEN, PROMPT, decode, open_pair, request

TARGET = GOLDEN / "gemma4" / "target"
EAGLE3 = GOLDEN / "gemma4_eagle3"
VARIANTS = ("gemma4", "gemma4_eagle3")


def test_eagle3_drafts_equal_the_reference() -> None:
    taps = read_draft_config(EAGLE3 / "draft").target_layer_ids
    cpu = torch.device("cpu")
    target = load_target(TARGET, tap_layers=taps, device=cpu, dtype=torch.float32)
    drafter = load_drafter(EAGLE3 / "draft", target)
    assert isinstance(drafter, Eagle3Drafter)
    for case in json.loads((EAGLE3 / "expected.json").read_text()):
        ids = torch.tensor(case["prompt"])
        slot = filled(drafter, ids, taps_of(target, ids), len(ids))
        logits = proposed(drafter, [slot], [case["anchor"]])[0]
        assert logits.argmax(-1).tolist() == case["draft"]
        golden = torch.tensor(case["base_logits8"])
        torch.testing.assert_close(logits[:, :8], golden, atol=1e-4, rtol=0)


def test_an_eagle3_head_leaves_the_text_as_it_is() -> None:
    engine = open_pair(TARGET, EAGLE3 / "draft").engine
    prompts = [PROMPT, PROMPT[:2], PROMPT * 2]
    plain = [decode(engine, [request(p, 30, plain=True)])[0] for p in prompts]
    assert decode(engine, [request(p, 30) for p in prompts]) == plain
    rounds = [e for e in engine.run([request()]) if isinstance(e, Round)]
    assert any(r.accepted for r in rounds) and not all(r.accepted for r in rounds)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_written_head_reads_back_and_says_what_the_reference_says(
    variant: str, tmp_path: Path
) -> None:
    source = writers.write_deepspec(tmp_path / "source", variant)
    assert convert_head(source, tmp_path / "out", "deepspec").dropped == ()
    found = find_head(tmp_path / "out")
    assert found.packaging is Packaging.DEEPSPEC
    before, after = read_draft(source), read_draft(tmp_path / "out")
    assert found.config == after[0] == before[0]
    assert after[1].keys() == before[1].keys()
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in after[1].items())
    ours = json.loads((tmp_path / "out" / "config.json").read_text())
    theirs = json.loads((source / "config.json").read_text())
    noise = {"rope_type", "rope_theta"}  # beside the two kinds of layers
    theirs["rope_parameters"] = {
        kind: rope for kind, rope in theirs["rope_parameters"].items() if kind not in noise
    }
    # of sliding layers, and of training
    unused = {"head_dim", "num_key_value_heads", "sliding_window", "num_anchors"}
    shared = ours.keys() & theirs.keys() - unused
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}
    assert {"architectures", "global_head_dim", "layer_types", "final_logit_softcapping"} < shared


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_module_has_the_names_of_the_file(variant: str) -> None:
    folder = GOLDEN / variant / "draft"
    config, stored = read_draft_config(folder), load_file(folder / "model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    own = {n: tuple(t.shape) for n, t in build_head(config).state_dict().items()}
    assert config.expected_tensors() == shapes
    assert own == {name: shape for name, shape in shapes.items() if name not in SHARED}


def test_speculators_knows_no_such_layers(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Gemma4's layers") as failure:
        convert_head(GOLDEN / "gemma4" / "draft", tmp_path / "out", "speculators")
    assert "deepspec" in failure.value.hint
    assert not list(tmp_path.iterdir())


def test_without_its_sequential_head_it_is_a_dflash_head(tmp_path: Path) -> None:
    raw, tensors = writers.golden_head("gemma4")
    raw |= {"markov_rank": 0, "enable_confidence_head": False}
    bare = {n: t for n, t in tensors.items() if not n.startswith(("markov", "confidence"))}
    folder = tmp_path / "head"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    writers.write_safetensors(folder / "model.safetensors", bare)
    engine = open_pair(TARGET, folder).engine
    rounds = [e for e in engine.run([request()]) if isinstance(e, Round)]
    assert any(r.accepted for r in rounds)
    assert decode(engine, [request()]) == decode(engine, [request(plain=True)])
