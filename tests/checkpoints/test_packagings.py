"""One head in every packaging drafts the same tokens; what is not established is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspark.checkpoints.deepspec import read_head
from dspark.checkpoints.detect import Packaging
from dspark.checkpoints.heads import check_published, find_head, read_draft, read_draft_config
from dspark.errors import CheckpointError
from dspark.events import Finished, Round
from tests.checkpoints import writers
from tests.engine.pairs import GOLDEN, decode, open_pair, request

SAME = {
    "deepspec": (writers.write_deepspec, Packaging.DEEPSPEC),
    "speculators": (writers.write_speculators, Packaging.SPECULATORS),
    "specforge": (writers.write_specforge, Packaging.SPECFORGE),
    "lfm2": (writers.write_lfm2, Packaging.LFM2),
    "subfolder": (writers.write_subfolder, Packaging.DEEPSPEC),
}


def rounds(target: Path, draft: Path) -> list[tuple]:
    """What was drafted and accepted, after a check against plain decoding."""
    engine = open_pair(target, draft).engine
    events = list(engine.run([request(max_tokens=48)]))
    assert isinstance(events[-1], Finished)
    assert events[-1].token_ids == decode(engine, [request(max_tokens=48, plain=True)])[0]
    found = [e for e in events if isinstance(e, Round)]
    return [(e.anchor, e.draft, e.accepted, e.next, e.confidence) for e in found]


def refused(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_draft(folder)
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


def change(folder: Path, **values) -> Path:
    raw = json.loads((folder / "config.json").read_text()) | values
    kept = {key: value for key, value in raw.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize("packaging", SAME)
def test_every_packaging_drafts_the_same(packaging, tmp_path):
    write, expected = SAME[packaging]
    folder = write(tmp_path / "head")
    assert find_head(folder).packaging is expected
    target = GOLDEN / "vanilla" / "target"
    ours, golden = rounds(target, folder), rounds(target, GOLDEN / "vanilla" / "draft")
    assert [r[:4] for r in ours] == [r[:4] for r in golden]
    for mine, other in zip(ours, golden, strict=True):
        torch.testing.assert_close(torch.tensor(mine[4]), torch.tensor(other[4]))


@pytest.mark.parametrize("variant", ["gated", "rnn", "dflash"])
@pytest.mark.parametrize("write", [writers.write_speculators, writers.write_specforge])
def test_every_kind_of_head_reads_the_same(write, variant, tmp_path):
    config, tensors = read_draft(write(tmp_path / "head", variant))
    own, expected = read_head(GOLDEN / variant / "draft")
    assert (
        config.markov_type == own.markov_type
        and config.sampled_calibration == own.sampled_calibration
    )
    assert config.target_layer_ids == own.target_layer_ids
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    assert expected.keys() - tensors.keys() <= set(writers.SHARED)


@pytest.mark.parametrize("where", ["absent", "null", "empty"])
def test_layers_that_a_dflash_head_does_not_name_are_not_guessed(tmp_path, where):
    folder = writers.write_dflash(tmp_path / "head")
    raw = json.loads((folder / "config.json").read_text())
    held = raw if "target_layer_ids" in raw else raw["dflash_config"]
    del held["target_layer_ids"]
    held |= {"absent": {}, "null": {"target_layer_ids": None}, "empty": {"target_layer_ids": []}}[
        where
    ]
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="target_layer_ids"):
        read_draft_config(folder)
    if where != "empty":
        with pytest.raises(CheckpointError, match="target_layer_ids"):
            check_published(raw, "owner/head")


def test_the_anchor_of_a_dflash_head_predicts_nothing(tmp_path):
    folder = writers.write_dflash(tmp_path / "head")
    config = read_draft_config(folder)
    golden = read_draft_config(GOLDEN / "dflash" / "draft")
    assert (config.block_size, config.block_rows) == (golden.block_size - 1, golden.block_size)
    target = GOLDEN / "dflash" / "target"
    engine, theirs = (
        open_pair(target, draft).engine for draft in (folder, GOLDEN / "dflash" / "draft")
    )
    ours = next(e for e in engine.run([request()]) if isinstance(e, Round))
    golden_round = next(e for e in theirs.run([request()]) if isinstance(e, Round))
    assert ours.draft == golden_round.draft[1:]  # the same block, from the slot after the anchor
    rounds(target, folder)


def test_a_reduced_vocabulary_drafts_its_own_tokens_only(tmp_path):
    known = torch.arange(0, 65, 2)
    folder = writers.write_speculators(tmp_path / "head", known=known)
    assert read_draft_config(folder).draft_vocab_size == len(known)
    found = rounds(GOLDEN / "vanilla" / "target", folder)
    drafted = {token for r in found for token in r[1]}
    assert drafted and drafted <= set(known.tolist())
    assert any(r[2] for r in found)


def test_a_reduced_vocabulary_without_an_output_head_takes_the_targets_rows(tmp_path):
    target = GOLDEN / "vanilla" / "target"
    whole = writers.write_speculators(tmp_path / "whole", known=torch.arange(0, 65, 2))
    bare = writers.write_speculators(tmp_path / "bare", known=torch.arange(0, 65, 2))
    tensors = load_file(bare / "model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if n != "lm_head.weight"}, bare / "model.safetensors"
    )
    assert rounds(target, bare) == rounds(target, whole)


@pytest.mark.parametrize("known", [torch.tensor([3, 3]), torch.tensor([-1, 4]), torch.tensor([65])])
def test_a_map_to_no_tokens_is_refused(known, tmp_path):
    folder = writers.write_speculators(tmp_path / "head", known=torch.arange(len(known)))
    tensors = load_file(folder / "model.safetensors")
    tensors["d2t"] = known - torch.arange(len(known))
    save_file(tensors, folder / "model.safetensors")
    assert "d2t" in refused(folder).message


def test_a_whole_vocabulary_needs_no_map(tmp_path):
    folder = writers.write_speculators(tmp_path / "head", known=torch.arange(65))
    config, tensors = read_draft(folder)
    assert config.draft_vocab_size is None and not {"d2t", "t2d"} & tensors.keys()


def test_shapes_count_where_the_config_is_wrong(tmp_path):
    folder = writers.write_specforge(tmp_path / "head")
    change(folder, intermediate_size=7, num_hidden_layers=9, head_dim=2, vocab_size=11)
    target = GOLDEN / "vanilla" / "target"
    assert rounds(target, folder) == rounds(target, writers.write_specforge(tmp_path / "sound"))


def test_rope_fields_of_the_target_are_noise(tmp_path):
    folder = writers.write_specforge(tmp_path / "head")
    theta = json.loads((folder / "config.json").read_text())["rope_theta"]
    noise = {"rope_type": "default", "mrope_section": [1, 1], "partial_rotary_factor": 0.25}
    before = read_draft_config(folder)
    change(folder, rope_parameters=noise | {"rope_theta": theta}, partial_rotary_factor=0.25)
    assert read_draft_config(folder) == before


def test_yarn_is_no_noise(tmp_path):
    folder = writers.write_specforge(tmp_path / "head")
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    change(folder, rope_scaling=yarn)
    target = GOLDEN / "vanilla" / "target"
    assert rounds(target, folder) != rounds(target, writers.write_specforge(tmp_path / "plain"))
    assert "odd" in refused(change(folder, rope_scaling=yarn | {"odd": 1})).message


@pytest.mark.parametrize(("drafts", "from_anchor"), [(7, True), (6, False)])
def test_the_number_of_drafts_tells_the_first_slot(drafts, from_anchor, tmp_path):
    folder = writers.write_speculators(tmp_path / "head", sample_from_anchor=None)
    raw = json.loads((folder / "config.json").read_text())
    raw["speculators_config"]["proposal_methods"][0]["speculative_tokens"] = drafts
    config = read_draft_config(change(folder, **raw))
    assert (config.sample_from_anchor, config.block_size) == (from_anchor, drafts)
    raw["speculators_config"]["proposal_methods"] = []
    assert "sample_from_anchor" in refused(change(folder, **raw)).message


@pytest.mark.parametrize(
    ("method", "word"),
    [
        ({"causal": True}, "causal"),
        ({"swa_window_size": 2048}, "sliding window"),
        ({"attention_sink_bias": True}, "Nemotron"),
        ({"projector_type": "causal_v5"}, "causal_v5"),
        ({"shift_label": True}, "shifted"),
    ],
)
def test_what_is_not_built_is_refused(method, word, tmp_path):
    folder = writers.write_specforge(tmp_path / "head")
    raw = json.loads((folder / "config.json").read_text())
    assert word in refused(change(folder, dflash_config=raw["dflash_config"] | method)).message


@pytest.mark.parametrize(
    ("architecture", "word", "engine"),
    [
        ("K3DSparkModel", "Kimi", "vLLM"),
        ("DSparkMiniMaxDraftModel", "MiniMax", "SGLang"),
        ("Qwen35DSparkModel", "Qwen3.5", "mlx"),
        ("LlamaForCausalLMEagle3", "Eagle3 head in another layout", "vLLM"),
        ("LlamaForCausalLM", "LlamaForCausalLM", "target"),
    ],
)
def test_other_heads_are_refused_by_name_with_their_engine(architecture, word, engine, tmp_path):
    folder = change(writers.write_specforge(tmp_path / "head"), architectures=[architecture])
    error = refused(folder)
    assert word in error.message and engine in error.hint


def test_gguf_and_v4_are_named(tmp_path):
    (tmp_path / "head.gguf").write_bytes(b"GGUF")
    assert "GGUF" in refused(tmp_path).message and "llama.cpp" in refused(tmp_path).hint
    folder = writers.write_deepspec(tmp_path / "v4")
    change(folder, architectures=["DeepseekV4ForCausalLM"], dspark_block_size=5)
    assert "DeepSeek-V4" in refused(folder).message


def test_a_targets_own_mtp_head_is_named(tmp_path):
    source = writers.write_deepspec(tmp_path, "dflash")
    folder = change(source, architectures=["Qwen3_5ForCausalLM"])
    tensors = load_file(folder / "model.safetensors")
    save_file({f"mtp.{n}": t for n, t in tensors.items()}, folder / "model.safetensors")
    assert "MTP" in refused(folder).message and "vLLM" in refused(folder).hint


def test_tensors_may_lie_below_model_but_not_twice(tmp_path):
    folder = writers.write_specforge(tmp_path / "head")
    tensors = load_file(folder / "model.safetensors")
    save_file({f"model.{n}": t for n, t in tensors.items()}, folder / "model.safetensors")
    names = read_draft(folder)[1].keys()
    assert names == tensors.keys()
    doubled = tensors | {"model.norm.weight": tensors["norm.weight"].clone()}
    save_file(doubled, folder / "model.safetensors")
    assert "two names" in refused(folder).message
