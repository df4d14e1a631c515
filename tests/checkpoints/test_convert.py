"""Heads written in other layouts draft the same; what cannot be said there is refused or named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dspark.checkpoints.convert import convert_head
from dspark.checkpoints.deepspec import update_head_config, write_draft_vocabulary
from dspark.checkpoints.detect import Packaging
from dspark.checkpoints.heads import find_head, read_draft
from dspark.errors import CheckpointError, InputError, StorageError
from tests.checkpoints import writers
from tests.checkpoints.test_packagings import rounds
from tests.engine.pairs import GOLDEN

TARGET = GOLDEN / "vanilla" / "target"


def test_there_and_back_again_drafts_the_same(tmp_path):
    source = writers.write_deepspec(tmp_path / "source")
    there, back = tmp_path / "there", tmp_path / "back"
    assert convert_head(source, there, "speculators").dropped == ()
    assert find_head(there).packaging is Packaging.SPECULATORS
    assert convert_head(there, back, "deepspec").packaging == Packaging.SPECULATORS
    assert rounds(TARGET, source) == rounds(TARGET, there) == rounds(TARGET, back)
    before, after = read_draft(source), read_draft(back)
    assert before[0] == find_head(source).config and before[1].keys() == after[1].keys()
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])


def test_speculators_layout_is_what_the_independent_writer_writes(tmp_path):
    known = torch.arange(0, 65, 2)
    source = writers.write_speculators(tmp_path / "source", known=known)
    convert_head(source, tmp_path / "out", "speculators", target_name="toy")
    ours, theirs = (json.loads((d / "config.json").read_text()) for d in (tmp_path / "out", source))
    theirs.pop("speculators_version")
    for raw in (ours, theirs):
        raw.pop("architectures")
        raw["speculators_config"]["verifier"].pop("architectures")
    layers = ours.pop("transformer_layer_config"), theirs.pop("transformer_layer_config")
    assert ours == theirs
    assert {key: layers[0][key] for key in layers[1]} == layers[1]
    ours, theirs = (load_file(d / "model.safetensors") for d in (tmp_path / "out", source))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_the_target_lends_what_the_head_lacks(tmp_path):
    source = writers.write_specforge(tmp_path / "source")
    bare = convert_head(source, tmp_path / "bare", "deepspec")
    assert [each.split()[0] for each in bare.dropped] == list(writers.SHARED)
    assert convert_head(source, tmp_path / "full", "deepspec", TARGET).dropped == ()
    names = load_file(tmp_path / "full" / "model.safetensors").keys()
    assert names == load_file(GOLDEN / "vanilla" / "draft" / "model.safetensors").keys()
    assert rounds(TARGET, tmp_path / "full") == rounds(TARGET, source)


def test_what_is_dropped_is_said(tmp_path):
    source = writers.write_deepspec(tmp_path / "source")
    write_draft_vocabulary(source, torch.arange(0, 65, 2))
    size = find_head(source).config.block_size
    update_head_config(source, {"confidence_temperatures": [2.0] * size, "graft": {"seed": 1}})
    dropped = " ".join(convert_head(source, tmp_path / "out", "speculators").dropped)
    assert all(word in dropped for word in ("vocabulary", "calibration", "training"))


@pytest.mark.parametrize(
    ("write", "layout", "word"),
    [
        (lambda f: writers.write_speculators(f, known=torch.arange(9)), "deepspec", "reduced"),
        (writers.write_dflash, "deepspec", "anchor"),
        (lambda f: writers.write_deepspec(f, "eagle3"), "speculators", "Eagle3"),
    ],
)
def test_what_a_layout_cannot_say_is_refused(write, layout, word, tmp_path):
    with pytest.raises(CheckpointError, match=word):
        convert_head(write(tmp_path / "source"), tmp_path / "out", layout)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_nothing_is_written_over_and_nothing_half_left(tmp_path, monkeypatch):
    source = writers.write_deepspec(tmp_path / "source")
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError):
        convert_head(source, tmp_path / "there", "deepspec")

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    for module, layout in (("deepspec", "deepspec"), ("convert", "speculators")):
        monkeypatch.setattr(f"dspark.checkpoints.{module}.save_file", full)
        with pytest.raises(StorageError):
            convert_head(source, tmp_path / "out", layout)
    assert sorted(p.name for p in Path(tmp_path).iterdir()) == ["source", "there"]
