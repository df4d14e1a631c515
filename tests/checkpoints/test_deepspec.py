"""Heads are read strictly: what does not fit is named, in one line, before anything is decoded."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspark.checkpoints.deepspec import (
    DRAFT_VOCABULARY,
    read_draft_vocabulary,
    read_head,
    read_head_config,
    update_head_config,
    write_draft_vocabulary,
    write_head,
)
from dspark.checkpoints.dspark_config import DSparkConfig, calibrated_for
from dspark.checkpoints.head_config import Calibration
from dspark.engine.session import load_drafter
from dspark.errors import CheckpointError, PairMismatchError, StorageError
from dspark.targets.load import load_target

GOLDEN = Path(__file__).parents[1] / "conformance"
PLACE = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture
def head_dir(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "rnn" / "draft", tmp_path / "draft")
    return tmp_path / "draft"


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder: Path, **values) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw.update(values)
    kept = {key: value for key, value in raw.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(kept))


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_head(folder)
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("variant", ["vanilla", "gated", "rnn", "dflash"])
def test_expected_tensors_are_those_of_the_reference(variant):
    config, tensors = read_head(GOLDEN / variant / "draft")
    assert {n: tuple(t.shape) for n, t in tensors.items()} == config.expected_tensors()


@pytest.mark.parametrize("variant", ["vanilla", "gated", "rnn", "dflash"])
def test_written_heads_read_back_the_same(variant, tmp_path):
    config, tensors = read_head(GOLDEN / variant / "draft")
    write_head(tmp_path, config, tensors, {"graft": {"seed": 1}})
    again, found = read_head(tmp_path)
    assert again == config
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_missing_tensor_is_named(head_dir):
    change_tensors(head_dir, lambda t: t.pop("layers.1.mlp.up_proj.weight"))
    assert "layers.1.mlp.up_proj.weight" in refused(head_dir)


def test_surplus_tensor_is_named(head_dir):
    change_tensors(head_dir, lambda t: t.update({"layers.9.odd": torch.ones(2)}))
    assert "layers.9.odd" in refused(head_dir)


def test_misshapen_tensor_is_named_with_both_shapes(head_dir):
    change_tensors(head_dir, lambda t: t.update({"fc.weight": torch.ones(48, 3)}))
    message = refused(head_dir)
    assert "fc.weight" in message and "[48, 3]" in message and "[48, 96]" in message


def test_embedding_and_head_may_be_left_to_the_target(tmp_path):
    config, tensors = read_head(GOLDEN / "vanilla" / "draft")
    shared = {
        n: t for n, t in tensors.items() if n not in ("embed_tokens.weight", "lm_head.weight")
    }
    write_head(tmp_path, config, shared, {})
    assert read_head(tmp_path)[1].keys() == shared.keys()


@pytest.mark.parametrize("size", [0, 5, 100, 20000])
def test_truncated_file_is_refused(head_dir, size):
    path = head_dir / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "model.safetensors" in refused(head_dir)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"architectures": ["LlamaForCausalLM"]}', "{}"]
)
def test_config_of_something_else_is_refused(head_dir, content):
    (head_dir / "config.json").write_text(content)
    refused(head_dir)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_size", "absent"),
        ("markov_head_type", "quantum"),
        ("block_size", 0),
        ("mask_token_id", 65),
        ("target_layer_ids", [0, 3]),
        ("target_layer_ids", []),
        ("target_layer_ids", [-2]),
        ("hidden_size", "wide"),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
        ("markov_rank", 0),
    ],
)
def test_impossible_config_is_refused(head_dir, key, value):
    change_config(head_dir, **{key: value})
    refused(head_dir)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_head_config(tmp_path)
    shutil.copy(GOLDEN / "rnn" / "draft" / "config.json", tmp_path)
    assert "model.safetensors" in refused(tmp_path)


def test_full_disk_leaves_the_old_head(tmp_path, monkeypatch):
    config, tensors = read_head(GOLDEN / "vanilla" / "draft")
    write_head(tmp_path, config, tensors, {})
    before = (tmp_path / "model.safetensors").read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dspark.checkpoints.deepspec.save_file", full)
    with pytest.raises(StorageError):
        write_head(tmp_path, config, tensors, {})
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("ids", [[], [3, 1], [1, 1], [-1, 4], [4, 65], [[1, 2]]])
def test_impossible_draft_vocabulary_is_refused(tmp_path, ids):
    save_file({"token_ids": torch.tensor(ids).int()}, tmp_path / DRAFT_VOCABULARY)
    with pytest.raises(CheckpointError, match="vocabulary"):
        read_draft_vocabulary(tmp_path, 65)


def test_draft_vocabulary_reads_back(tmp_path):
    assert read_draft_vocabulary(tmp_path, 65) is None
    write_draft_vocabulary(tmp_path, torch.tensor([0, 7, 64]))
    assert read_draft_vocabulary(tmp_path, 65).tolist() == [0, 7, 64]
    write_draft_vocabulary(tmp_path, None)
    assert read_draft_vocabulary(tmp_path, 65) is None
    (tmp_path / DRAFT_VOCABULARY).write_bytes(b"torn")
    with pytest.raises(CheckpointError):
        read_draft_vocabulary(tmp_path, 65)


# -- does the head belong to the target? -----------------------------------------------------------


@pytest.mark.parametrize("variant", ["gated", "rnn", "dflash"])
def test_head_of_another_model_is_refused(variant, tiny_llama_dir):
    target = load_target(tiny_llama_dir, tap_layers=(), **PLACE)
    with pytest.raises(PairMismatchError):
        load_drafter(GOLDEN / variant / "draft", target)


@pytest.mark.parametrize(
    ("sizes", "word"),
    [
        ({"hidden_size": 64}, "hidden size"),
        ({"vocab_size": 66}, "vocabulary"),
        ({"num_layers": 5}, "layers"),
    ],
)
def test_mismatch_is_named(sizes, word):
    config = read_head_config(GOLDEN / "vanilla" / "draft")
    own = {"vocab_size": 65, "hidden_size": 48, "num_layers": 4}
    config.check_target(**own)
    with pytest.raises(PairMismatchError, match=word):
        config.check_target(**{**own, **sizes})


def test_taps_beyond_the_last_layer_are_refused():
    raw = json.loads((GOLDEN / "vanilla" / "draft" / "config.json").read_text())
    config = DSparkConfig.from_json({**raw, "num_target_layers": 9, "target_layer_ids": [0, 7]})
    with pytest.raises(PairMismatchError):
        config.check_target(vocab_size=65, hidden_size=48, num_layers=4)


def test_temperatures_are_read_written_and_otherwise_left_out(head_dir, tmp_path):
    config, tensors = read_head(head_dir)
    none = Calibration.none(config.block_size)
    assert config.sampled_calibration == config.greedy_calibration == none
    ours = {"confidence_temperatures", "confidence_shifts", "greedy_confidence"}
    assert not ours & config.to_json().keys()
    write_head(tmp_path, config, tensors, {"graft": {"seed": 3}})
    chosen = [1.0 + k / 4 for k in range(config.block_size)]
    update_head_config(tmp_path, {"confidence_temperatures": chosen, "graft": {"ece": 0.5}})
    again, _ = read_head(tmp_path)
    assert again == replace(config, confidence_temperatures=tuple(chosen))
    assert again.to_json()["confidence_temperatures"] == chosen
    assert again.greedy_calibration == Calibration(tuple(chosen), none.shifts)  # serves both
    shifts = [0.5 - k for k in range(config.block_size)]
    update_head_config(tmp_path, {"confidence_shifts": shifts})
    assert calibrated_for(replace(config, confidence_shifts=tuple(shifts))) != "none"
    shifted, _ = read_head(tmp_path)
    assert shifted.to_json()["confidence_shifts"] == shifts
    assert shifted.sampled_calibration == Calibration(tuple(chosen), tuple(shifts))
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["graft"] == {"seed": 3, "ece": 0.5}


def test_greedy_requests_may_have_a_calibration_of_their_own(head_dir):
    size = read_head_config(head_dir).block_size
    own = {"shifts": [-0.25 * k for k in range(size)], "temperatures": [2.0] * size}
    change_config(head_dir, greedy_confidence=own)
    config = read_head_config(head_dir)
    assert config.greedy_calibration == Calibration((2.0,) * size, tuple(own["shifts"]))
    assert set(config.sampled_calibration.temperatures) == {1.0}
    assert calibrated_for(config) == "greedy and sampled requests apart"
    together = replace(config, greedy_confidence=None, confidence_temperatures=(2.0,))
    assert calibrated_for(together) == "one for all requests"
    assert calibrated_for(replace(together, has_confidence=False)) is None
    assert json.loads(json.dumps(config.to_json()))["greedy_confidence"] == own
    for wrong in (
        own | {"temperatures": [1.0]},
        own | {"shifts": [1.0]},
        own | {"shifts": [float("inf")] * size},
        {"shifts": own["shifts"]},
        [1],
    ):
        change_config(head_dir, greedy_confidence=wrong)
        assert re.search("malformed|is not a number", refused(head_dir))


def test_the_one_shift_of_an_older_head_is_every_positions(head_dir):
    size = read_head_config(head_dir).block_size
    older = {"shift": -0.25, "temperatures": [2.0] * size}
    change_config(head_dir, greedy_confidence=older)
    expected = Calibration((2.0,) * size, (-0.25,) * size)
    assert read_head_config(head_dir).greedy_calibration == expected
    change_config(head_dir, greedy_confidence=older | {"shift": float("inf")})
    assert re.search("malformed|is not a number", refused(head_dir))


@pytest.mark.parametrize(
    "wrong",
    [[1.0], [], 2.0, "1111", [1, 1, 1, 0], [1, 1, 1, -2], [1, 1, 1, float("nan")], [1, None]],
)
def test_temperatures_that_do_not_fit_are_refused(head_dir, wrong):
    assert read_head_config(head_dir).block_size != 1
    size = read_head_config(head_dir).block_size
    wrong = [1.0] * (size - len(wrong)) + wrong if isinstance(wrong, list) and wrong[1:] else wrong
    change_config(head_dir, confidence_temperatures=wrong)
    assert re.search("malformed|NaN is not a number", refused(head_dir))


@pytest.mark.parametrize("wrong", [[1.0], [], 2.0, "1111", [0, float("nan")], [0, None]])
def test_shifts_that_do_not_fit_are_refused(head_dir, wrong):
    size = read_head_config(head_dir).block_size
    wrong = [0.0] * (size - len(wrong)) + wrong if isinstance(wrong, list) and wrong[1:] else wrong
    change_config(head_dir, confidence_shifts=wrong)
    assert re.search("malformed|NaN is not a number", refused(head_dir))


def test_a_refused_change_leaves_the_config_as_it_was(head_dir):
    before = (head_dir / "config.json").read_bytes()
    with pytest.raises(CheckpointError):
        update_head_config(head_dir, {"confidence_temperatures": [1.0]})
    assert (head_dir / "config.json").read_bytes() == before
